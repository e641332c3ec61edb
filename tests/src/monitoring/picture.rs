//! The dashboard's panels as one picture, drawn of what Prometheus answered to their own expressions.

use std::collections::BTreeMap;
use std::ops::Range;

use anyhow::{Context, Result, anyhow};
use plotters::coord::Shift;
use plotters::coord::combinators::IntoLogRange;
use plotters::prelude::*;

use super::prometheus::Course;

/// A panel's title, with what each of its expressions gave.
pub type Answers = BTreeMap<String, Vec<Vec<Course>>>;

const WIDTH: u32 = 960;
const BAND: u32 = 90;
const CHART: u32 = 190;
const LEGEND: u32 = 150;
const FONT: (&str, u32) = ("sans-serif", 18);
const SMALL: (&str, u32) = ("sans-serif", 13);
/// Left of every chart, so that one second is at one place in all of them.
const MARGIN: u32 = 70;

/// Okabe and Ito's palette, as in the benchmark's pictures.
const BLUE: RGBColor = RGBColor(0, 114, 178);
const ORANGE: RGBColor = RGBColor(230, 159, 0);
const GREEN: RGBColor = RGBColor(0, 158, 115);
const RED: RGBColor = RGBColor(213, 94, 0);
const PURPLE: RGBColor = RGBColor(204, 121, 167);
const GREY: RGBColor = RGBColor(130, 130, 130);

/// The values of the panel "State", as its mappings name them.
const STATES: [(&str, RGBColor); 4] = [
    ("normal", GREEN),
    ("recovering", ORANGE),
    ("stressed", RED),
    ("stress by Postfix", PURPLE),
];

/// A chart of lines: the panel's title, and for each of its expressions what to call its series (a label, with a word for
/// those that have no such label) and their colours.
type Lines = (&'static str, &'static [(&'static str, &'static [RGBColor])]);
const CHARTS: [Lines; 5] = [
    (
        "smtpd: busy and limit",
        &[("busy", &[BLUE]), ("limit", &[GREY]), ("added", &[ORANGE])],
    ),
    (
        "Accept queue",
        &[("depth", &[BLUE]), ("high water", &[ORANGE]), ("limit", &[GREY])],
    ),
    (
        "Clients that left before the greeting",
        &[("phase", &[BLUE, ORANGE]), ("all connections", &[GREY])],
    ),
    (
        "Connections that were shed",
        &[("reason", &[BLUE, ORANGE, GREEN, RED])],
    ),
    (
        "Reloads and trips",
        &[("result", &[BLUE, RED]), ("trips", &[ORANGE])],
    ),
];
const GREETING: &str = "Greeting latency";

type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;

/// The picture as SVG; `time` in seconds since the epoch.
///
/// # Errors
/// A panel that the picture is made of is not in the answers, or the drawing failed.
pub fn draw(answers: &Answers, time: Range<f64>) -> Result<String> {
    let of = |title: &str| {
        answers
            .get(title)
            .with_context(|| format!("the dashboard has no panel {title:?}"))
    };
    let height = BAND + CHART * (CHARTS.len() as u32 + 1);
    let mut svg = String::new();
    {
        let mut rest = SVGBackend::with_string(&mut svg, (WIDTH, height)).into_drawing_area();
        rest.fill(&WHITE).map_err(failed)?;
        let mut next = |height: u32| {
            let (top, below) = rest.split_vertically(height);
            rest = below;
            top
        };
        states(&next(BAND), of("State")?, &time)?;
        for (title, series) in &CHARTS[..2] {
            lines(&next(CHART), title, series, of(title)?, &time)?;
        }
        greetings(&next(CHART), of(GREETING)?, &time)?;
        for (title, series) in &CHARTS[2..] {
            lines(&next(CHART), title, series, of(title)?, &time)?;
        }
    }
    Ok(svg)
}

/// A band for the sentinel's state, and one for Postfix's own.
fn states(area: &Area<'_>, answers: &[Vec<Course>], time: &Range<f64>) -> Result<()> {
    let (plot, side) = split(area);
    let bands: Vec<_> = answers.iter().flatten().collect();
    let top = bands.len() as f64;
    let mut chart = ChartBuilder::on(&plot)
        .margin(6)
        .caption("State", FONT)
        .y_label_area_size(MARGIN)
        .build_cartesian_2d(0.0..time.end - time.start, 0.0..top)
        .map_err(failed)?;
    for (row, band) in bands.iter().rev().enumerate() {
        let cells = band.points().map(|(at, value)| {
            let (_, colour) = STATES[(value as usize).min(STATES.len() - 1)];
            let (x, y) = (at - time.start, row as f64);
            Rectangle::new([(x, y + 0.1), (x + 1.0, y + 0.9)], colour.filled())
        });
        chart.draw_series(cells).map_err(failed)?;
    }
    let seen = |state: usize| {
        let mut values = bands.iter().flat_map(|band| band.points());
        values.any(|(_, value)| value as usize == state)
    };
    let entries: Vec<_> = STATES
        .iter()
        .enumerate()
        .filter(|(state, _)| seen(*state))
        .map(|(_, (name, colour))| ((*name).to_owned(), *colour))
        .collect();
    legend(&side, &entries)
}

fn lines(
    area: &Area<'_>,
    title: &str,
    names: &[(&str, &[RGBColor])],
    answers: &[Vec<Course>],
    time: &Range<f64>,
) -> Result<()> {
    let (plot, side) = split(area);
    let values = answers.iter().flatten().flat_map(Course::points);
    let top = values.map(|(_, value)| value).fold(1.0, f64::max) * 1.1;
    let mut chart = ChartBuilder::on(&plot)
        .margin(6)
        .caption(title, FONT)
        .x_label_area_size(20)
        .y_label_area_size(MARGIN)
        .build_cartesian_2d(0.0..time.end - time.start, 0.0..top)
        .map_err(failed)?;
    mesh(&mut chart, (top as usize + 1).min(5), &|value| {
        format!("{value:.0}")
    })?;
    let mut entries = Vec::new();
    for ((name, colours), courses) in names.iter().zip(answers) {
        for (course, &colour) in courses.iter().zip(colours.iter().cycle()) {
            let points = course.points().map(|(at, value)| (at - time.start, value));
            let own = match course.label(name) {
                "" => (*name).to_owned(),
                value => value.replace('_', " "),
            };
            chart
                .draw_series(LineSeries::new(points, colour.stroke_width(2)))
                .map_err(failed)?;
            entries.push((own, colour));
        }
    }
    legend(&side, &entries)
}

/// Greetings by latency over time, the darker the more; the axis is logarithmic as the buckets are.
fn greetings(area: &Area<'_>, answers: &[Vec<Course>], time: &Range<f64>) -> Result<()> {
    let (plot, _) = split(area);
    let cells = cells(answers.first().map_or(&[], Vec::as_slice));
    let most = cells.iter().map(|cell| cell.count).fold(1.0, f64::max);
    let bounds = cells.iter().fold((1.0_f64, 1e-3_f64), |(low, high), cell| {
        (low.min(cell.above), high.max(cell.up_to))
    });
    let mut chart = ChartBuilder::on(&plot)
        .margin(6)
        .caption(GREETING, FONT)
        .x_label_area_size(20)
        .y_label_area_size(MARGIN)
        .build_cartesian_2d(0.0..time.end - time.start, (bounds.0..bounds.1).log_scale())
        .map_err(failed)?;
    mesh(&mut chart, 5, &|value| match *value {
        1.0.. => format!("{value:.0} s"),
        _ => format!("{} ms", value * 1000.0),
    })?;
    let rectangles = cells.iter().map(|cell| {
        let x = cell.at - time.start;
        let colour = BLUE.mix(0.15 + 0.85 * (cell.count / most).sqrt());
        Rectangle::new([(x, cell.above), (x + 1.0, cell.up_to)], colour.filled())
    });
    chart.draw_series(rectangles).map(drop).map_err(failed)
}

/// So many greetings at a time that took longer than `above` and at most `up_to` seconds.
#[derive(Debug, PartialEq)]
struct Cell {
    at: f64,
    above: f64,
    up_to: f64,
    count: f64,
}

/// Cumulative buckets by `le`, taken apart; those with nobody in them are left out, and the last, which has no end.
fn cells(courses: &[Course]) -> Vec<Cell> {
    let mut buckets: Vec<(f64, &Course)> = courses
        .iter()
        .filter_map(|course| Some((course.label("le").parse().ok()?, course)))
        .collect();
    buckets.sort_by(|(one, _), (other, _)| one.total_cmp(other));
    let mut cells = Vec::new();
    for pair in buckets.windows(2) {
        let [(above, below), (up_to, bucket)] = pair else {
            continue;
        };
        if !up_to.is_finite() {
            continue;
        }
        let before: BTreeMap<_, _> = below.points().map(|(at, count)| (at.to_bits(), count)).collect();
        cells.extend(bucket.points().filter_map(|(at, count)| {
            let count = count - before.get(&at.to_bits())?;
            // Of an extrapolated increase, which need not be whole.
            (count > 0.5).then_some(Cell {
                at,
                above: *above,
                up_to: *up_to,
                count,
            })
        }));
    }
    cells
}

type Chart<'a, 'b, Y> =
    ChartContext<'a, SVGBackend<'b>, Cartesian2d<plotters::coord::types::RangedCoordf64, Y>>;

fn mesh<Y>(chart: &mut Chart<'_, '_, Y>, labels: usize, format: &dyn Fn(&f64) -> String) -> Result<()>
where
    Y: Ranged<ValueType = f64> + plotters::coord::ranged1d::ValueFormatter<f64>,
{
    chart
        .configure_mesh()
        .x_label_formatter(&|second| format!("{second:.0} s"))
        .y_label_formatter(format)
        .y_labels(labels)
        .label_style(SMALL)
        .light_line_style(TRANSPARENT)
        .draw()
        .map_err(failed)
}

/// A chart's own area, and one right of it for the legend, where no line is.
fn split<'a>(area: &Area<'a>) -> (Area<'a>, Area<'a>) {
    area.split_horizontally(WIDTH - LEGEND)
}

fn legend(area: &Area<'_>, entries: &[(String, RGBColor)]) -> Result<()> {
    for ((name, colour), row) in entries.iter().zip(0..) {
        let y = 12 + 18 * row;
        let mark = Rectangle::new([(8, y), (22, y + 10)], colour.filled());
        area.draw(&mark).map_err(failed)?;
        area.draw(&Text::new(name.as_str(), (28, y), SMALL))
            .map_err(failed)?;
    }
    Ok(())
}

/// The error of a drawing borrows what is drawn on; its words do not.
fn failed(error: impl std::error::Error) -> anyhow::Error {
    anyhow!("drawing: {error}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn course(labels: serde_json::Value, values: serde_json::Value) -> Course {
        serde_json::from_value(serde_json::json!({ "metric": labels, "values": values })).unwrap()
    }

    #[test]
    fn buckets_are_taken_apart() {
        let le = |le: &str, count: &str| {
            course(
                serde_json::json!({ "le": le }),
                serde_json::json!([[7.0, count], [8.0, "NaN"]]),
            )
        };
        let courses = [le("+Inf", "9"), le("0.5", "2"), le("1.0", "5"), le("2.0", "5")];
        let wanted = Cell {
            at: 7.0,
            above: 0.5,
            up_to: 1.0,
            count: 3.0,
        };
        assert_eq!(cells(&courses), [wanted]);
    }

    #[test]
    fn every_chart_is_there_with_its_names() {
        let line = |labels| vec![course(labels, serde_json::json!([[0.0, "0"], [1.0, "2"]]))];
        let answers = [("State", 1), (GREETING, 1)]
            .into_iter()
            .chain(CHARTS.map(|(title, names)| (title, names.len())))
            .map(|(title, expressions)| {
                (
                    title.to_owned(),
                    vec![line(serde_json::json!({ "phase": "before_greeting" })); expressions],
                )
            })
            .collect();
        let svg = draw(&answers, 0.0..10.0).unwrap();
        for (title, _) in CHARTS {
            assert!(svg.contains(title), "{title}");
        }
        for name in ["stressed", "before greeting", "high water", "trips"] {
            assert!(svg.contains(name), "{name}");
        }
        assert!(draw(&Answers::new(), 0.0..10.0).is_err());
    }
}
