//! A profile as a picture: how long senders waited, and what was delivered, over time, a line for each scenario.

use anyhow::{Result, anyhow};
use plotters::coord::Shift;
use plotters::coord::combinators::IntoLogRange;
use plotters::prelude::*;

use super::report::{Outcome, Run, Second};
use super::scenarios;

const SIZE: (u32, u32) = (960, 620);
/// Seconds that one point stands for: eight sessions a second make too rough a line.
const BIN_S: i64 = 5;
const FONT: &str = "sans-serif";

/// The palette of Okabe and Ito, which colour-blind people can tell apart; one for each scenario, the same in all pictures.
const COLOURS: [RGBColor; 6] = [
    RGBColor(213, 94, 0),
    RGBColor(0, 114, 178),
    RGBColor(230, 159, 0),
    RGBColor(0, 158, 115),
    RGBColor(204, 121, 167),
    RGBColor(86, 180, 233),
];

/// The picture as SVG.
///
/// # Errors
/// There is nothing to draw, or the drawing failed.
pub fn draw(outcome: &Outcome) -> Result<String> {
    let seconds = outcome.runs.iter().flat_map(|run| &run.seconds);
    // Beyond the measured time the load ends in its own way.
    let end = outcome.window_s as i64;
    let start = seconds.map(|second| second.at_s).min();
    let start = start.ok_or_else(|| anyhow!("no run of {} has a course", outcome.profile))?;
    let mut svg = String::new();
    {
        let area = SVGBackend::with_string(&mut svg, SIZE).into_drawing_area();
        area.fill(&WHITE).map_err(failed)?;
        let title = format!("{}: {}", outcome.profile, outcome.about);
        let area = area.titled(&title, (FONT, 20)).map_err(failed)?;
        let (above, below) = area.split_vertically(SIZE.1 / 2 - 10);
        greeting(&above, outcome, start..end)?;
        delivered(&below, outcome, start..end)?;
        area.present().map_err(failed)?;
    }
    Ok(svg)
}

type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;

/// The 90th percentile of the wait for a greeting, by when the session began, on a logarithmic axis; who was never greeted
/// stands at the patience of the senders.
fn greeting(area: &Area<'_>, outcome: &Outcome, time: std::ops::Range<i64>) -> Result<()> {
    let patience_ms = outcome.patience_s * 1000.0;
    let mut chart = ChartBuilder::on(area)
        .margin(8)
        .x_label_area_size(22)
        .y_label_area_size(76)
        .build_cartesian_2d(time.clone(), (1.0..patience_ms * 1.3).log_scale())
        .map_err(failed)?;
    chart
        .configure_mesh()
        .y_desc("greeting, p90")
        .y_label_formatter(&|milliseconds| match *milliseconds {
            1000.0.. => format!("{} s", milliseconds / 1000.0),
            _ => format!("{milliseconds} ms"),
        })
        .label_style((FONT, 16))
        .light_line_style(TRANSPARENT)
        .draw()
        .map_err(failed)?;
    for run in &outcome.runs {
        let points = points(run, &time, |bin| {
            let mut waits: Vec<_> = bin
                .iter()
                .flat_map(|second| &second.waits_ms)
                .map(|wait| wait.unwrap_or(f64::INFINITY))
                .collect();
            waits.sort_unstable_by(f64::total_cmp);
            let rank = (waits.len() * 9).div_ceil(10).checked_sub(1)?;
            Some(waits[rank].clamp(1.0, patience_ms))
        });
        chart
            .draw_series(LineSeries::new(points, colour(&run.scenario).stroke_width(2)))
            .map_err(failed)?;
    }
    Ok(())
}

/// Messages delivered a second, by when their session ended.
fn delivered(area: &Area<'_>, outcome: &Outcome, time: std::ops::Range<i64>) -> Result<()> {
    let rate = |bin: &[&Second]| {
        let delivered: usize = bin.iter().map(|second| second.delivered).sum();
        Some(delivered as f64 / bin.len() as f64)
    };
    let lines: Vec<_> = outcome
        .runs
        .iter()
        .map(|run| (run, points(run, &time, rate)))
        .collect();
    let all = lines.iter().flat_map(|(_, points)| points);
    let top = all.map(|(_, rate)| *rate).fold(1.0, f64::max) * 1.1;
    let mut chart = ChartBuilder::on(area)
        .margin(8)
        .x_label_area_size(40)
        .y_label_area_size(76)
        .build_cartesian_2d(time, 0.0..top)
        .map_err(failed)?;
    chart
        .configure_mesh()
        .x_desc("seconds since the start of the attack")
        .y_desc("delivered a second")
        .y_label_formatter(&|rate| format!("{rate:.0}"))
        .label_style((FONT, 16))
        .light_line_style(TRANSPARENT)
        .draw()
        .map_err(failed)?;
    for (run, points) in lines {
        let colour = colour(&run.scenario);
        chart
            .draw_series(LineSeries::new(points, colour.stroke_width(2)))
            .map_err(failed)?
            .label(run.scenario.as_str())
            .legend(move |(x, y)| PathElement::new([(x, y), (x + 18, y)], colour.stroke_width(3)));
    }
    // The one corner that no line visits while mail flows.
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::LowerLeft)
        .background_style(WHITE.mix(0.8))
        .label_font((FONT, 16))
        .draw()
        .map_err(failed)
}

/// A point for each full bin that has a value, in its middle.
fn points(
    run: &Run,
    time: &std::ops::Range<i64>,
    value: impl Fn(&[&Second]) -> Option<f64>,
) -> Vec<(i64, f64)> {
    let course: Vec<_> = run
        .seconds
        .iter()
        .filter(|second| time.contains(&second.at_s))
        .collect();
    course
        .chunk_by(|one, next| one.at_s.div_euclid(BIN_S) == next.at_s.div_euclid(BIN_S))
        .filter(|bin| bin.len() == BIN_S as usize)
        .filter_map(|bin| Some((bin.first()?.at_s + BIN_S / 2, value(bin)?)))
        .collect()
}

fn colour(scenario: &str) -> RGBColor {
    let place = scenarios::ALL.iter().position(|known| known.name == scenario);
    place
        .and_then(|place| COLOURS.get(place))
        .copied()
        .unwrap_or(BLACK)
}

/// The error of a drawing borrows what is drawn on; its words do not.
fn failed(error: impl std::error::Error) -> anyhow::Error {
    anyhow!("drawing: {error}")
}

#[cfg(test)]
mod tests {
    use super::super::table::tests::{outcome, run};
    use super::*;

    fn second(at_s: i64, wait_ms: Option<f64>) -> Second {
        Second {
            at_s,
            waits_ms: vec![wait_ms; 8],
            delivered: 8,
            ..Second::default()
        }
    }

    #[test]
    fn a_point_stands_for_a_full_bin() {
        let mut run = run("builtin");
        run.seconds = (-7..12).map(|at_s| second(at_s, Some(1.0))).collect();
        let count = |bin: &[&Second]| Some(bin.len() as f64);
        assert_eq!(points(&run, &(-7..12), count), [(-3, 5.0), (2, 5.0), (7, 5.0)]);
        assert_eq!(points(&run, &(0..10), |_| None), []);
    }

    #[test]
    fn every_scenario_is_a_line_in_its_colour() {
        let runs: Vec<_> = scenarios::ALL
            .iter()
            .map(|scenario| Run {
                seconds: (-5..60)
                    .map(|at_s| second(at_s, (at_s < 30).then_some(4.0)))
                    .collect(),
                ..run(scenario.name)
            })
            .collect();
        let svg = draw(&outcome("flood", runs)).unwrap();
        for (scenario, RGBColor(red, green, blue)) in scenarios::ALL.iter().zip(COLOURS) {
            assert!(svg.contains(scenario.name), "{}", scenario.name);
            let colour = format!("#{red:02X}{green:02X}{blue:02X}");
            assert_eq!(
                svg.matches(&format!("stroke=\"{colour}\"")).count(),
                3,
                "two lines and a legend"
            );
        }
        assert!(
            svg.contains("100 ms") && svg.contains("10 s"),
            "the axis names times"
        );
    }

    #[test]
    fn a_run_without_a_course_is_no_picture() {
        assert!(draw(&outcome("flood", vec![run("builtin")])).is_err());
    }
}
