//! When a response ends by itself: end-of-turn tokens, and stop texts that may span tokens.
//!
//! Text that could be the beginning of a stop text is held back until it is certain, so that none of it leaks out.

use serde_json::Value;

/// Every token that ends a turn: of `generation_config.json`, of `config.json` and of the tokenizer.
pub fn end_of_turn_ids(generation_config: &Value, config: &Value, tokenizer_eos: Option<u32>) -> Vec<u32> {
    let mut ids: Vec<u32> = tokenizer_eos.into_iter().collect();
    for value in [&generation_config["eos_token_id"], &config["eos_token_id"]] {
        let list = value.as_array().map_or(std::slice::from_ref(value), Vec::as_slice);
        // Some files use -1 or null for "none".
        ids.extend(list.iter().filter_map(|id| u32::try_from(id.as_u64()?).ok()));
    }
    ids.sort_unstable();
    ids.dedup();
    ids
}

/// Looks for stop texts in a stream of text.
#[derive(Clone, Debug)]
pub struct StopTexts {
    stops: Vec<String>,
    /// Text that is not out: possibly the beginning of a stop text.
    held: String,
}

impl StopTexts {
    /// A matcher; none of the texts may be empty.
    pub fn new(stops: &[String]) -> Self {
        Self { stops: stops.iter().filter(|s| !s.is_empty()).cloned().collect(), held: String::new() }
    }

    /// Takes new text and gives what is certain to belong to the response, and whether a stop text was found. After one
    /// was, whatever follows it is dropped.
    pub fn push(&mut self, text: &str) -> (String, bool) {
        self.held += text;
        if let Some(at) = self.stops.iter().filter_map(|stop| self.held.find(stop.as_str())).min() {
            self.held.truncate(at);
            return (std::mem::take(&mut self.held), true);
        }
        let keep = self.stops.iter().map(|stop| overlap(&self.held, stop)).max().unwrap_or(0);
        let rest = self.held.split_off(self.held.len() - keep);
        (std::mem::replace(&mut self.held, rest), false)
    }

    /// The held text, which no stop text can complete any more.
    pub fn finish(&mut self) -> String {
        std::mem::take(&mut self.held)
    }
}

/// The length in bytes of the longest end of `text` that is a beginning of `stop` and not the whole of it.
fn overlap(text: &str, stop: &str) -> usize {
    let beginnings = stop.char_indices().map(|(at, _)| at).rev();
    beginnings.into_iter().find(|len| text.as_bytes().ends_with(&stop.as_bytes()[..*len])).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn run(stops: &[&str], pieces: &[&str]) -> (Vec<String>, bool) {
        let stops: Vec<String> = stops.iter().map(|s| s.to_string()).collect();
        let mut matcher = StopTexts::new(&stops);
        let mut out = Vec::new();
        for piece in pieces {
            let (text, stopped) = matcher.push(piece);
            out.push(text);
            if stopped {
                return (out, true);
            }
        }
        out.push(matcher.finish());
        (out, false)
    }

    #[test]
    fn stop_texts_span_pieces_and_never_leak() {
        assert_eq!(run(&["END"], &["aE", "N", "Dx"]), (vec!["a".into(), "".into(), "".into()], true));
        let released = vec!["a".into(), "".into(), "ENX".into(), "".into()];
        assert_eq!(run(&["END"], &["aE", "N", "X"]), (released, false));
        assert_eq!(run(&["\n\n"], &["a\n", "b\n"]), (vec!["a".into(), "\nb".into(), "\n".into()], false));
        assert_eq!(run(&["aab"], &["aa", "ab"]), (vec!["".into(), "a".into()], true));
        assert_eq!(run(&["é🙂"], &["xé", "🙂"]), (vec!["x".into(), "".into()], true));
        assert_eq!(run(&["é🙂"], &["xé", "🙃"]).0.concat(), "xé🙃");
    }

    #[test]
    fn the_earliest_of_several_wins() {
        assert_eq!(run(&["c", "abc"], &["xab", "cd"]), (vec!["x".into(), "".into()], true));
        assert_eq!(run(&[], &["abc"]), (vec!["abc".into(), "".into()], false));
    }

    #[test]
    fn every_cut_gives_the_same_text() {
        let text = "one ## two #### three #";
        for cut in 0..text.len() {
            let (out, stopped) = run(&["####", "###x"], &[&text[..cut], &text[cut..]]);
            assert!(stopped);
            assert_eq!(out.concat(), "one ## two ", "cut at {cut}");
        }
    }

    #[test]
    fn end_ids_of_every_spelling() {
        let none = Value::Null;
        let list = serde_json::json!({"eos_token_id": [7, 3]});
        let one = serde_json::json!({"eos_token_id": 5});
        let odd = serde_json::json!({"eos_token_id": -1});
        assert_eq!(end_of_turn_ids(&list, &one, Some(3)), [3, 5, 7]);
        assert_eq!(end_of_turn_ids(&none, &odd, Some(2)), [2]);
        assert!(end_of_turn_ids(&none, &none, None).is_empty());
    }
}
