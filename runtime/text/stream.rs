//! Incremental decoding: ids one by one to text that is always whole Unicode characters.
//!
//! Byte-level tokenizers and byte fallback both spread a character over several tokens; its text appears with the last
//! of them. Bytes that cannot become a character appear as U+FFFD, so that a stream never stalls and never fails.

use std::sync::Arc;

use super::tokenizer::Tokenizer;
use crate::error::Result;

/// Ids held back at most; far more than any character needs.
const WINDOW: usize = 32;

/// Decodes one response.
#[derive(Debug)]
pub struct TextStream {
    tokenizer: Arc<Tokenizer>,
    /// An anchor whose text is out already (blanks depend on what stands before), then ids that are not out in full.
    window: Vec<u32>,
    /// Bytes of the window's text that are out.
    emitted: usize,
    /// Bytes of byte-fallback tokens that are no whole character yet.
    bytes: Vec<u8>,
}

impl TextStream {
    /// A stream that continues after `previous`, the last token of the prompt: without it the first piece of a
    /// SentencePiece tokenizer loses its leading blank.
    pub fn new(tokenizer: Arc<Tokenizer>, previous: Option<u32>) -> Result<Self> {
        let mut stream = Self { tokenizer, window: Vec::new(), emitted: 0, bytes: Vec::new() };
        if let Some(id) = previous {
            stream.anchor(id)?;
        }
        Ok(stream)
    }

    /// The text that became certain with this id; often empty.
    pub fn push(&mut self, id: u32) -> Result<String> {
        if let Some(byte) = self.tokenizer.fallback_byte(id) {
            let mut out = self.rest_of_window()?;
            self.bytes.push(byte);
            out += &self.whole_characters();
            self.anchor(id)?;
            return Ok(out);
        }
        let mut out = String::new();
        if !self.bytes.is_empty() {
            self.bytes.clear();
            out.push(char::REPLACEMENT_CHARACTER);
        }
        self.window.push(id);
        let text = self.tokenizer.decode(&self.window)?;
        // An unfinished character decodes to exactly one U+FFFD at the end; earlier ones are final.
        let certain = text.strip_suffix(char::REPLACEMENT_CHARACTER).unwrap_or(&text);
        if certain.len() == text.len() || self.window.len() > WINDOW {
            out += text.get(self.emitted..).unwrap_or_default();
            self.anchor(id)?;
        } else if let Some(new) = certain.get(self.emitted..) {
            out += new;
            self.emitted = certain.len();
        }
        Ok(out)
    }

    /// What is left when no further id comes: U+FFFD for an unfinished character.
    pub fn finish(&mut self) -> Result<String> {
        let mut out = self.rest_of_window()?;
        if !self.bytes.is_empty() {
            self.bytes.clear();
            out.push(char::REPLACEMENT_CHARACTER);
        }
        Ok(out)
    }

    /// The window's text that is not out, certain or not; the window is then empty.
    fn rest_of_window(&mut self) -> Result<String> {
        let text = self.tokenizer.decode(&self.window)?;
        let rest = text.get(self.emitted..).unwrap_or_default().to_owned();
        self.window.clear();
        self.emitted = 0;
        Ok(rest)
    }

    /// Starts a new window after an id whose text is out.
    fn anchor(&mut self, id: u32) -> Result<()> {
        let text = self.tokenizer.decode(&[id])?;
        // A special token has no text and must not take the place of a real neighbour.
        if !text.is_empty() || self.window.first() == Some(&id) {
            self.window.clear();
            self.window.push(id);
            self.emitted = text.len();
        } else {
            self.window.truncate(1);
            self.emitted = self.tokenizer.decode(&self.window)?.len();
        }
        Ok(())
    }

    /// Takes whole characters off the pending bytes; bytes that can start none become U+FFFD.
    fn whole_characters(&mut self) -> String {
        let mut out = String::new();
        loop {
            match std::str::from_utf8(&self.bytes) {
                Ok(text) => {
                    out += text;
                    self.bytes.clear();
                    return out;
                }
                Err(e) => {
                    out += &String::from_utf8_lossy(&self.bytes[..e.valid_up_to()]);
                    let Some(invalid) = e.error_len() else {
                        self.bytes.drain(..e.valid_up_to());
                        return out;
                    };
                    out.push(char::REPLACEMENT_CHARACTER);
                    self.bytes.drain(..e.valid_up_to() + invalid);
                }
            }
        }
    }
}
