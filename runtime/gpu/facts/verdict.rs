//! What is known of one kernel, and the line of a file that keeps it.

/// Letters of what a driver says that are kept.
const LONGEST_REASON: usize = 300;

/// What is known of one kernel.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Verdict {
    /// Why it may not be used.
    pub(super) failure: Option<String>,
    /// The largest error of its cases, as a fraction of the largest value.
    pub(super) error: f64,
    /// Of one dispatch.
    pub(super) micros: Option<f64>,
}

impl Verdict {
    /// One line of a validation's many.
    pub(super) fn failed(reason: &str) -> Self {
        // Never empty: in the file that stands for a kernel that passed.
        let words: Vec<&str> = std::iter::once("wrong:").chain(reason.split_whitespace()).collect();
        let reason = words.join(" ").chars().take(LONGEST_REASON).collect();
        Self { failure: Some(reason), ..Self::default() }
    }

    /// One line of the file.
    pub(super) fn line(&self, name: &str) -> String {
        let micros = self.micros.map_or(String::new(), |m| m.to_string());
        format!("{name}\t{}\t{micros}\t{}\n", self.error, self.failure.as_deref().unwrap_or_default())
    }

    pub(super) fn parse(line: &str) -> Option<(String, Self)> {
        let mut fields = line.split('\t');
        let mut field = || fields.next();
        let (name, error, micros, failure) = (field()?, field()?, field()?, field()?);
        let micros = if micros.is_empty() { None } else { Some(micros.parse().ok()?) };
        let failure = Some(failure.to_owned()).filter(|reason| !reason.is_empty());
        Some((name.to_owned(), Self { failure, error: error.parse().ok()?, micros }))
    }
}
