//! The device's seat: who computes now, and who takes over when it goes.
//!
//! What lies on a device is named by an id and the **epoch** it was made in; a loss begins the next epoch. Invariants: an
//! id of one epoch is never given to the device of another; a lost device is dropped before the next is opened, so that
//! weights never need room twice.

use std::sync::Arc;
use std::time::Instant;

use super::events::EngineEvent;
use crate::device::{Device, DeviceInfo};
use crate::error::{Error, Result};

/// Opens a device and places the model's weights on it.
pub type MakeDevice = Box<dyn FnMut() -> Result<Box<dyn Device>> + Send>;

/// How an engine goes on after its device was lost.
pub struct Recovery {
    /// The same device again.
    pub again: MakeDevice,
    /// The CPU, for when the device cannot be opened or is lost over and over; without it requests fail then.
    pub cpu: Option<MakeDevice>,
}

/// Something on the device: its id, valid in one epoch.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Placed<T> {
    pub(crate) id: T,
    pub(crate) epoch: u64,
}

pub(crate) struct Seat {
    /// Absent between a loss and the next use.
    device: Option<Box<dyn Device>>,
    /// Of the device that computes, or computed last.
    info: Arc<DeviceInfo>,
    epoch: u64,
    recovery: Option<Recovery>,
    /// Why the device is given up for the CPU.
    refused: Option<String>,
    /// Whether the CPU has taken over.
    moved: bool,
    /// Tokens of a pass that every later device must take.
    least_tokens: usize,
    /// Not told yet.
    news: Vec<EngineEvent>,
}

impl Seat {
    pub(crate) fn new(device: Box<dyn Device>, recovery: Option<Recovery>, least_tokens: usize) -> Self {
        let info = Arc::new(device.info().clone());
        Self {
            device: Some(device),
            info,
            epoch: 0,
            recovery,
            refused: None,
            moved: false,
            least_tokens,
            news: Vec::new(),
        }
    }

    pub(crate) fn info(&self) -> &Arc<DeviceInfo> {
        &self.info
    }

    pub(crate) fn epoch(&self) -> u64 {
        self.epoch
    }

    /// The device, as it is.
    pub(crate) fn device(&mut self) -> Option<&mut Box<dyn Device>> {
        self.device.as_mut()
    }

    pub(crate) fn take_news(&mut self) -> Vec<EngineEvent> {
        std::mem::take(&mut self.news)
    }

    /// One call to the device, which is made again first if it was lost.
    pub(crate) fn call<T>(&mut self, work: impl FnOnce(&mut dyn Device) -> Result<T>) -> Result<Placed<T>> {
        let device = match &mut self.device {
            Some(device) => device,
            None => {
                let device = self.make()?;
                self.device.insert(device)
            }
        };
        let result = work(device.as_mut());
        // A device that refuses what is right may have done half of it: it is no more to be trusted than a lost one.
        if let Err(error @ (Error::DeviceLost { .. } | Error::Gpu { .. })) = &result {
            self.lose(error.to_string());
        }
        Ok(Placed { id: result?, epoch: self.epoch })
    }

    /// Gives the device up; whether another will take over.
    pub(crate) fn lose(&mut self, reason: String) -> bool {
        if self.recovery.is_none() {
            return false;
        }
        if self.device.take().is_some() {
            self.epoch += 1;
            self.news.push(EngineEvent::DeviceLost { reason });
        }
        true
    }

    /// Settles for the CPU, which the next use opens; whether there is one.
    pub(crate) fn settle_for_cpu(&mut self, reason: &Error) -> bool {
        let has_cpu = self.recovery.as_ref().is_some_and(|recovery| recovery.cpu.is_some());
        if has_cpu && self.refused.is_none() {
            self.lose(reason.to_string());
            self.refused = Some(reason.to_string());
        }
        has_cpu
    }

    pub(crate) fn can_recover(&self) -> bool {
        self.recovery.is_some()
    }

    fn make(&mut self) -> Result<Box<dyn Device>> {
        let lost = || Error::DeviceLost { reason: "it was not made again".into() };
        let start = Instant::now();
        let recovery = self.recovery.as_mut().ok_or_else(lost)?;
        let mut made = None;
        if self.refused.is_none() {
            match (recovery.again)().and_then(|device| check(device, self.least_tokens)) {
                Ok(device) => made = Some(device),
                Err(error) if recovery.cpu.is_none() => return Err(error),
                Err(error) => self.refused = Some(error.to_string()),
            }
        }
        let device = match made {
            Some(device) => device,
            None => check(recovery.cpu.as_mut().ok_or_else(lost)?()?, self.least_tokens)?,
        };
        self.info = Arc::new(device.info().clone());
        let time = start.elapsed();
        self.news.push(match &self.refused {
            Some(reason) if !std::mem::replace(&mut self.moved, true) => {
                EngineEvent::MovedToCpu { reason: reason.clone(), time }
            }
            _ => EngineEvent::DeviceRebuilt { device: self.info.name.clone(), time },
        });
        Ok(device)
    }
}

/// Sessions cut prompts for the first device; a later one must take the pieces.
fn check(device: Box<dyn Device>, least_tokens: usize) -> Result<Box<dyn Device>> {
    let info = device.info();
    if info.max_tokens < least_tokens {
        let reason = format!(
            "{} takes {} tokens in a pass where the lost one took {least_tokens}",
            info.name, info.max_tokens
        );
        return Err(Error::NoDevice { wanted: info.kind.into(), reason });
    }
    Ok(device)
}
