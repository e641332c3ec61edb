//! Quantiles of a log2 histogram.

/// The `q`-quantile (0 to 1) in milliseconds of a histogram whose element i counts [2^i, 2^(i+1)) microseconds, element
/// 0 also what is below 1. Within a bucket the counts are taken as evenly spread, so the answer can be off by the
/// bucket's width, at most a factor of 2. None of an empty histogram.
pub fn quantile_ms(log2_us: &[u64], q: f64) -> Option<f64> {
    let total: u64 = log2_us.iter().sum();
    if total == 0 {
        return None;
    }
    let rank = q.clamp(0.0, 1.0) * total as f64;
    let mut below = 0.0;
    let mut answer = 0.0;
    for (bucket, count) in log2_us.iter().enumerate().filter(|(_, count)| **count > 0) {
        let from = if bucket == 0 { 0.0 } else { (bucket as f64).exp2() };
        let to = (bucket as f64 + 1.0).exp2();
        let count = *count as f64;
        answer = from + (to - from) * ((rank - below) / count).clamp(0.0, 1.0);
        below += count;
        if below >= rank {
            break;
        }
    }
    Some(answer / 1000.0)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn nothing_has_no_quantile() {
        assert_eq!(quantile_ms(&[], 0.5), None);
        assert_eq!(quantile_ms(&[0; 32], 0.5), None);
    }

    #[test]
    fn one_full_bucket() {
        let mut histogram = [0; 32];
        histogram[10] = 4;
        assert_eq!(quantile_ms(&histogram, 0.0), Some(1.024));
        assert_eq!(quantile_ms(&histogram, 0.5), Some(1.536));
        assert_eq!(quantile_ms(&histogram, 1.0), Some(2.048));
    }

    #[test]
    fn the_tail_is_in_the_last_bucket() {
        let mut histogram = [0; 32];
        histogram[0] = 98;
        histogram[20] = 2;
        assert!(quantile_ms(&histogram, 0.5).unwrap() < 0.002);
        assert!(quantile_ms(&histogram, 0.99).unwrap() >= 1048.576);
    }

    proptest! {
        #[test]
        fn lies_within_a_factor_of_two_of_the_sorted_value(mut values in proptest::collection::vec(2_u64..1 << 31, 1..200), q in 0.0..=1.0_f64) {
            let mut histogram = [0_u64; 32];
            for value in &values {
                histogram[value.ilog2() as usize] += 1;
            }
            values.sort_unstable();
            let rank = (q * values.len() as f64).ceil().max(1.0) as usize;
            let exact_ms = values[rank - 1] as f64 / 1000.0;
            let got = quantile_ms(&histogram, q).unwrap();
            prop_assert!(got <= exact_ms * 2.0 && got >= exact_ms / 2.0, "{got} against {exact_ms}");
        }
    }
}
