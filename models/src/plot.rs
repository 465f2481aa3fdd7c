//! Charts as SVG: horizontal bars (`bench --plot`) and lines (the loss of a training run).

use std::fmt::Write;

/// One bar.
pub struct Bar {
    /// What it measures.
    pub label: String,
    /// Its length.
    pub value: f64,
    /// The value as text, with its unit.
    pub text: String,
}

/// Bars under a title; each group has its own scale, because tokens per second and microseconds share none.
pub fn bars(title: &str, groups: &[(String, Vec<Bar>)]) -> String {
    let escape = |s: &str| s.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;");
    let rows: usize = groups.iter().map(|(_, bars)| bars.len() + 1).sum();
    let height = 48 + rows * 24 + groups.len() * 8;
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"720\" height=\"{height}\" font-family=\"sans-serif\" \
         font-size=\"13\">\n<rect width=\"100%\" height=\"100%\" fill=\"#fff\"/>\n\
         <text x=\"16\" y=\"26\" font-size=\"16\" font-weight=\"bold\">{}</text>\n",
        escape(title)
    );
    let mut y = 44;
    for (name, bars) in groups {
        y += 8;
        // Writing to a String cannot fail.
        let _ = writeln!(svg, "<text x=\"16\" y=\"{}\" font-weight=\"bold\">{}</text>", y + 15, escape(name));
        y += 24;
        let longest = bars.iter().map(|b| b.value).fold(f64::MIN_POSITIVE, f64::max);
        for bar in bars {
            let width = (bar.value / longest * 330.0).max(1.0);
            let _ = writeln!(
                svg,
                "<text x=\"24\" y=\"{0}\">{1}</text><rect x=\"230\" y=\"{2}\" width=\"{width:.1}\" height=\"16\" \
                 fill=\"#3b6ea5\"/><text x=\"{3:.1}\" y=\"{0}\">{4}</text>",
                y + 15,
                escape(&bar.label),
                y + 2,
                236.0 + width,
                escape(&bar.text)
            );
            y += 24;
        }
    }
    svg.push_str("</svg>\n");
    svg
}

/// A line of points.
pub struct Series {
    /// What it shows.
    pub label: String,
    /// (x, y), x ascending.
    pub points: Vec<(f64, f64)>,
}

const COLOURS: [&str; 4] = ["#3b6ea5", "#c0562f", "#4b8b3b", "#7a5195"];

/// Lines over one pair of axes that begin at the smallest values: training curves.
pub fn lines(title: &str, x_label: &str, series: &[Series]) -> String {
    let escape = |s: &str| s.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;");
    let points = || series.iter().flat_map(|s| &s.points).filter(|(x, y)| x.is_finite() && y.is_finite());
    let range = |of: fn(&(f64, f64)) -> f64| {
        let low = points().map(of).fold(f64::INFINITY, f64::min);
        let high = points().map(of).fold(f64::NEG_INFINITY, f64::max);
        if low < high { (low, high) } else { (low - 0.5, low + 0.5) }
    };
    let ((x0, x1), (y0, y1)) = (range(|p| p.0), range(|p| p.1));
    let x = |v: f64| 60.0 + (v - x0) / (x1 - x0) * 620.0;
    let y = |v: f64| 300.0 - (v - y0) / (y1 - y0) * 240.0;
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"720\" height=\"350\" font-family=\"sans-serif\" \
         font-size=\"12\">\n<rect width=\"100%\" height=\"100%\" fill=\"#fff\"/>\n\
         <text x=\"16\" y=\"26\" font-size=\"16\" font-weight=\"bold\">{}</text>\n\
         <text x=\"680\" y=\"336\" text-anchor=\"end\">{}</text>\n",
        escape(title),
        escape(x_label)
    );
    for part in 0..=4 {
        let share = f64::from(part) / 4.0;
        let (vx, vy) = (x0 + share * (x1 - x0), y0 + share * (y1 - y0));
        // Writing to a String cannot fail.
        let _ = writeln!(
            svg,
            "<line x1=\"60\" x2=\"680\" y1=\"{0:.1}\" y2=\"{0:.1}\" stroke=\"#ddd\"/>\
             <text x=\"54\" y=\"{1:.1}\" text-anchor=\"end\">{vy:.3}</text>\
             <text x=\"{2:.1}\" y=\"318\" text-anchor=\"middle\">{vx:.0}</text>",
            y(vy),
            y(vy) + 4.0,
            x(vx)
        );
    }
    for (index, line) in series.iter().enumerate() {
        let colour = COLOURS[index % COLOURS.len()];
        let path: Vec<String> =
            line.points.iter().map(|(a, b)| format!("{:.1},{:.1}", x(*a), y(*b))).collect();
        let _ = writeln!(
            svg,
            "<polyline fill=\"none\" stroke=\"{colour}\" stroke-width=\"1.5\" points=\"{}\"/>\
             <text x=\"{}\" y=\"48\" fill=\"{colour}\">{}</text>",
            path.join(" "),
            60 + 160 * index,
            escape(&line.label)
        );
    }
    svg.push_str("</svg>\n");
    svg
}
