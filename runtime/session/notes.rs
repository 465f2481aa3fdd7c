//! What was found out under a session's adapters, for whoever asks the same in a later process.

use super::Session;
use super::resident::list;

impl Session {
    /// Whether notes outlive this process.
    pub(crate) fn takes_notes(&self) -> bool {
        self.shared.prefixes.files.is_some()
    }

    /// What was noted of a subject under these adapters on this device.
    pub(crate) fn noted(&self, subject: &[u8]) -> Option<Vec<u8>> {
        let (list, device) = (list(self.adapters.as_ref()), self.shared.device_info());
        self.shared.prefixes.files.as_ref()?.read_note(subject, &list, &device)
    }

    /// Notes something of a subject; not being able to costs the next process its computation.
    pub(crate) fn note(&self, subject: &[u8], bytes: &[u8]) {
        let (list, device) = (list(self.adapters.as_ref()), self.shared.device_info());
        if let Some(files) = &self.shared.prefixes.files {
            files.write_note(subject, &list, &device, bytes);
        }
    }
}
