//! A horizontal bar chart as SVG: what `bench --plot` writes.

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
