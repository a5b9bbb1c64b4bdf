//! Pictures as SVG. Curves: panels side by side, each with axes, a grid and a name at every curve's
//! end. Bars: groups below each other over one axis, each bar with its name and its number.

use std::fmt::Write;

/// One picture of curves over common axes.
pub(crate) struct Panel {
    pub(crate) title: String,
    pub(crate) x_label: String,
    pub(crate) y_label: String,
    /// Where the upright axis begins.
    pub(crate) floor: Floor,
    pub(crate) curves: Vec<Curve>,
}

/// Where an axis begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Floor {
    /// At zero, so that lengths compare.
    Zero,
    /// Below the least value, so that changes show.
    Least,
}

/// Points joined by lines. Those that are no numbers are left out.
pub(crate) struct Curve {
    pub(crate) name: String,
    pub(crate) stroke: Stroke,
    pub(crate) points: Vec<(f64, f64)>,
}

/// How a curve is drawn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stroke {
    Plain,
    /// In the background: another curve tells the same more smoothly.
    Faint,
}

/// Bars that are compared with one another.
pub(crate) struct Group {
    pub(crate) title: String,
    /// Name and length. One that is no number is named and has no bar.
    pub(crate) bars: Vec<(String, f64)>,
}

const COLOURS: [&str; 6] = ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9"];
/// Sizes in pixels: a panel, what is around its axes (names stand at the right), a line of text.
const PANEL: (f64, f64) = (480.0, 360.0);
const LEFT: f64 = 60.0;
const RIGHT: f64 = 90.0;
const TOP: f64 = 36.0;
const BOTTOM: f64 = 48.0;
const LINE: f64 = 12.0;
/// Of bars: what is left of them for their names, a row, and how much of it a bar fills.
const NAMES: f64 = 120.0;
const ROW: f64 = 18.0;
const BAR: f64 = 12.0;

/// The picture of `panels`.
pub(crate) fn svg(panels: &[Panel]) -> String {
    let (width, height) = (PANEL.0 * panels.len() as f64, PANEL.1);
    let mut out = begin(width, height);
    for (i, panel) in panels.iter().enumerate() {
        panel.draw(PANEL.0 * i as f64, &mut out);
    }
    out.push_str("</svg>\n");
    out
}

/// The picture of `groups`, with `title` above. The length 1 is marked: it is what all are measured
/// by.
pub(crate) fn bars(title: &str, groups: &[Group]) -> String {
    let rows: usize = groups.iter().map(|group| group.bars.len() + 1).sum();
    let (width, height) = (PANEL.0, TOP + ROW * rows as f64 + BOTTOM);
    let mut out = begin(width, height);
    let lengths = groups.iter().flat_map(|group| &group.bars).map(|bar| bar.1);
    let ticks = ticks(lengths.filter(|x| x.is_finite()).fold(1.0, f64::max));
    let x_at = |x: f64| NAMES + x / ticks[ticks.len() - 1] * (width - NAMES - RIGHT);
    let bottom = height - BOTTOM;
    for &tick in &ticks {
        line(&mut out, (x_at(tick), TOP), (x_at(tick), bottom));
        text(&mut out, (x_at(tick), bottom + 15.0), "middle", &short(tick));
    }
    text(&mut out, (width / 2.0, TOP - 18.0), "middle", title);
    let mut y = TOP;
    for group in groups {
        text(&mut out, (8.0, y + BAR), "start", &group.title);
        for ((name, length), colour) in group.bars.iter().zip(COLOURS.iter().cycle()) {
            y += ROW;
            text(&mut out, (NAMES - 6.0, y + BAR - 2.0), "end", name);
            if length.is_finite() && *length >= 0.0 {
                let _ = writeln!(
                    out,
                    "<rect x=\"{NAMES}\" y=\"{y:.1}\" width=\"{:.1}\" height=\"{BAR}\" \
                     fill=\"{colour}\"/>",
                    x_at(*length) - NAMES
                );
                text(
                    &mut out,
                    (x_at(*length) + 5.0, y + BAR - 2.0),
                    "start",
                    &format!("{length:.2}"),
                );
            }
        }
        y += ROW;
    }
    let one = x_at(1.0);
    let _ = writeln!(
        out,
        "<line x1=\"{one:.1}\" y1=\"{TOP}\" x2=\"{one:.1}\" y2=\"{bottom}\" stroke=\"#333\"/>"
    );
    out.push_str("</svg>\n");
    out
}

/// The first lines of a picture.
fn begin(width: f64, height: f64) -> String {
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{width}\" height=\"{height}\" \
         font-family=\"sans-serif\" font-size=\"11\">\n\
         <rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n"
    )
}

impl Panel {
    /// Draws it with its left edge at `left`. Writing to a string cannot fail.
    fn draw(&self, left: f64, out: &mut String) {
        let points = || self.curves.iter().flat_map(|curve| &curve.points).filter(drawable);
        let greatest = |values: &mut dyn Iterator<Item = f64>| values.fold(0.0, f64::max);
        let x_ticks = ticks(greatest(&mut points().map(|p| p.0)));
        let highest = greatest(&mut points().map(|p| p.1));
        let y_ticks = match self.floor {
            Floor::Zero => ticks(highest),
            Floor::Least => ticks_from(points().map(|p| p.1).fold(highest, f64::min), highest),
        };
        let (x_end, y_begin) = (x_ticks[x_ticks.len() - 1], y_ticks[0]);
        let y_range = y_ticks[y_ticks.len() - 1] - y_begin;
        let x_at = |x: f64| left + LEFT + x / x_end * (PANEL.0 - LEFT - RIGHT);
        let y_at = |y: f64| PANEL.1 - BOTTOM - (y - y_begin) / y_range * (PANEL.1 - TOP - BOTTOM);
        let (x0, x1, y0, y1) = (x_at(0.0), x_at(x_end), y_at(y_begin), y_at(y_begin + y_range));
        for &tick in &x_ticks {
            let x = x_at(tick);
            line(out, (x, y0), (x, y1));
            text(out, (x, y0 + 15.0), "middle", &short(tick));
        }
        for &tick in &y_ticks {
            let y = y_at(tick);
            line(out, (x0, y), (x1, y));
            text(out, (x0 - 5.0, y + 4.0), "end", &short(tick));
        }
        text(out, ((x0 + x1) / 2.0, TOP - 18.0), "middle", &self.title);
        text(out, ((x0 + x1) / 2.0, PANEL.1 - 12.0), "middle", &self.x_label);
        text(out, (x0, TOP - 4.0), "end", &self.y_label);
        let mut names = Vec::new();
        for (curve, colour) in self.curves.iter().zip(COLOURS.iter().cycle()) {
            let drawn = curve.points.iter().filter(drawable);
            let drawn: Vec<(f64, f64)> = drawn.map(|&(x, y)| (x_at(x), y_at(y))).collect();
            let Some(&(_, end)) = drawn.last() else { continue };
            let list: Vec<String> = drawn.iter().map(|(x, y)| format!("{x:.1},{y:.1}")).collect();
            let list = list.join(" ");
            let stroke = match curve.stroke {
                Stroke::Plain => "stroke-width=\"2\"",
                Stroke::Faint => "stroke-width=\"1\" stroke-opacity=\"0.35\"",
            };
            let _ = writeln!(
                out,
                "<polyline points=\"{list}\" fill=\"none\" stroke=\"{colour}\" {stroke}/>"
            );
            names.push((end, &curve.name, colour));
        }
        names.sort_by(|a, b| a.0.total_cmp(&b.0));
        let mut above = f64::NEG_INFINITY;
        for (end, name, colour) in names {
            above = end.max(above + LINE);
            let _ = write!(out, "<g fill=\"{colour}\">");
            text(out, (x1 + 6.0, above + 4.0), "start", name);
            out.push_str("</g>\n");
        }
    }
}

fn drawable((x, y): &&(f64, f64)) -> bool {
    x.is_finite() && y.is_finite() && *x >= 0.0 && *y >= 0.0
}

/// Round numbers from 0 to at least `greatest`, between 3 and 7 of them.
fn ticks(greatest: f64) -> Vec<f64> {
    let greatest = if greatest > 0.0 { greatest } else { 1.0 };
    let ten = 10f64.powf((greatest / 5.0).log10().floor());
    let step = [1.0, 2.0, 5.0, 10.0].map(|m| m * ten).into_iter().find(|s| s * 5.0 >= greatest);
    let step = step.unwrap_or(greatest);
    (0..=(greatest / step - 1e-9).ceil() as usize).map(|i| i as f64 * step).collect()
}

/// Round numbers from at most `least` to at least `greatest`, both 0 or more.
fn ticks_from(least: f64, greatest: f64) -> Vec<f64> {
    let range = greatest - least;
    if range <= greatest * 1e-9 {
        return ticks(greatest);
    }
    let step = ticks(range)[1];
    let first = (least / step + 1e-9).floor();
    let last = (greatest / step - 1e-9).ceil();
    (0..=(last - first) as usize).map(|i| (first + i as f64) * step).collect()
}

fn short(number: f64) -> String {
    format!("{}", (number * 1e6).round() / 1e6)
}

fn line(out: &mut String, (x0, y0): (f64, f64), (x1, y1): (f64, f64)) {
    let _ = writeln!(
        out,
        "<line x1=\"{x0:.1}\" y1=\"{y0:.1}\" x2=\"{x1:.1}\" y2=\"{y1:.1}\" stroke=\"#ddd\"/>"
    );
}

fn text(out: &mut String, (x, y): (f64, f64), anchor: &str, text: &str) {
    let text = text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;");
    let _ = writeln!(out, "<text x=\"{x:.1}\" y=\"{y:.1}\" text-anchor=\"{anchor}\">{text}</text>");
}

#[cfg(test)]
mod tests {
    use super::*;

    fn panel(points: &[(f64, f64)]) -> Panel {
        let curve = |name: &str| Curve {
            name: name.to_owned(),
            stroke: Stroke::Plain,
            points: points.to_vec(),
        };
        Panel {
            title: "a < b & c".to_owned(),
            x_label: "rows".to_owned(),
            y_label: "ms".to_owned(),
            floor: Floor::Zero,
            curves: vec![curve("one"), curve("two")],
        }
    }

    /// Every tag is closed, in order, and text has no bare signs.
    fn well_formed(svg: &str) {
        let mut open: Vec<&str> = Vec::new();
        for tag in svg.split('<').skip(1) {
            let (tag, text) = tag.split_once('>').unwrap();
            let entities = text.matches("&lt;").count() + text.matches("&amp;").count();
            assert_eq!(text.matches('&').count(), entities, "{text}");
            match tag.strip_prefix('/') {
                Some(name) => assert_eq!(open.pop(), Some(name)),
                None if tag.ends_with('/') => {}
                None => open.push(tag.split(' ').next().unwrap()),
            }
        }
        assert_eq!(open, [""; 0]);
    }

    #[test]
    fn a_picture_has_its_panels_curves_and_names() {
        let points = [(1.0, 2.0), (2.0, 4.5), (32.0, 60.0)];
        let picture = svg(&[panel(&points), panel(&points)]);
        well_formed(&picture);
        assert_eq!(picture.matches("<polyline").count(), 4);
        assert_eq!(picture.matches(">two</text>").count(), 2);
        assert!(picture.contains("a &lt; b &amp; c") && picture.contains("width=\"960\""));
        // x goes from 60 to 390 for 0 to 40 rows, y from 312 to 36 for 0 to 60.
        assert!(picture.contains("68.2,302.8"), "{picture}");
    }

    #[test]
    fn what_is_no_number_is_not_drawn() {
        for points in [&[][..], &[(f64::NAN, 1.0), (1.0, f64::INFINITY), (-1.0, 2.0)]] {
            let picture = svg(&[panel(points)]);
            well_formed(&picture);
            assert!(!picture.contains("polyline") && !picture.contains("NaN"));
        }
        let picture = svg(&[panel(&[(1.0, f64::NAN), (1.0, 1.0), (2.0, 3.0)])]);
        assert_eq!(picture.matches("<polyline points=\"").count(), 2);
        well_formed(&svg(&[]));
    }

    #[test]
    fn bars_are_drawn_by_group_and_named() {
        let bar = |name: &str, length| (name.to_owned(), length);
        let group = |title: &str| Group {
            title: title.to_owned(),
            bars: vec![bar("off", 1.0), bar("a < b", 2.5), bar("none", f64::NAN)],
        };
        let picture = bars("times plain", &[group("chat"), group("code & more")]);
        well_formed(&picture);
        assert_eq!(picture.matches("<rect x=").count(), 4, "no bar of what is no number");
        for text in [">a &lt; b<", ">none<", ">2.50<", ">code &amp; more<", ">times plain<"] {
            assert!(picture.contains(text), "{text}");
        }
        // From 120 to 390 for 0 to 2.5.
        assert!(picture.contains("width=\"108.0\"") && picture.contains("width=\"270.0\""));
        well_formed(&bars("", &[]));
    }

    #[test]
    fn an_axis_from_the_least_value_covers_everything_closely() {
        for (least, greatest) in [(2.1, 2.3), (0.0, 1.0), (99.0, 101.0), (5.0, 5.0), (0.0, 0.0)] {
            let ticks = ticks_from(least, greatest);
            assert!((3..=8).contains(&ticks.len()), "{least} {greatest}: {ticks:?}");
            assert!(ticks[0] <= least && ticks[ticks.len() - 1] >= greatest * 0.999_999);
        }
        assert!(ticks_from(2.1, 2.3)[0] > 2.0);
        let points = panel(&[(10.0, 2.1), (20.0, 2.3)]);
        let close = svg(&[Panel { floor: Floor::Least, ..points }]);
        well_formed(&close);
        assert!(close.contains(">2.2<") && !close.contains(">0.5<"), "{close}");
    }

    #[test]
    fn ticks_are_few_and_cover_everything() {
        for greatest in [0.0, 1e-9, 0.3, 1.0, 7.0, 32.0, 99.0, 101.0, 5e8] {
            let ticks = ticks(greatest);
            assert!((3..=7).contains(&ticks.len()), "{greatest}: {ticks:?}");
            assert!(ticks[0] == 0.0 && ticks[ticks.len() - 1] >= greatest * 0.999_999);
        }
        assert_eq!(ticks(32.0), [0.0, 10.0, 20.0, 30.0, 40.0]);
    }
}
