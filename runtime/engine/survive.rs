//! What an engine tells of its device, and a way to try what an app does when it is lost.
//!
//! The recovery itself is the sessions': [`crate::session`] makes the device again and computes what it held.

use super::{Engine, EngineEvent};
use crate::device::DeviceFacts;
use crate::error::{Error, Result};

impl Engine {
    /// What the GPU's self-test found, with [`EngineOptions::device_folder`](super::EngineOptions::device_folder); none on
    /// the CPU, and none between a loss and the next use.
    pub fn device_facts(&self) -> Option<DeviceFacts> {
        self.shared.device_facts()
    }

    /// Sets who is told of lost and rebuilt devices, in place of an earlier listener. It is called in the midst of work,
    /// on the thread that computes: it must return at once and not call the engine.
    pub fn listen(&self, listener: impl Fn(&EngineEvent) + Send + Sync + 'static) {
        self.shared.events.listen(std::sync::Arc::new(listener));
    }

    /// Gives the device up as if the system had taken it, so that an app can be tried: the next use makes it again.
    /// Fails where the engine was made of parts that cannot do that.
    pub fn simulate_device_loss(&self) -> Result<()> {
        match self.shared.lose("simulated") {
            true => Ok(()),
            false => Err(Error::DeviceLost { reason: "this engine cannot make its device again".into() }),
        }
    }
}
