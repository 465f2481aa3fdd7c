//! One open GPU: buffers, uploads, readback, and every failure turned into a typed error.
//!
//! Invariant: whatever may fail on the GPU runs inside [`Context::guard`], so neither a validation error nor a lost
//! device panics; after a loss every call says [`Error::DeviceLost`]. A GPU that was waited for in vain counts as lost.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use crate::error::{Error, Result};

/// Bytes written between two submits: keeps wgpu's staging memory small (measured 4x faster than one large write).
pub(super) const PIECE: usize = 4 << 20;

/// Bytes of a buffer for so many.
pub(super) fn buffer_bytes(bytes: u64) -> u64 {
    bytes.checked_next_multiple_of(16).unwrap_or(u64::MAX).max(16)
}

/// What the callbacks of a device report.
#[derive(Default)]
struct Reports {
    lost: Option<String>,
    uncaptured: Option<String>,
    /// Work of it never ended.
    hangs: bool,
}

/// A device with its queue.
pub(super) struct Context {
    pub(super) device: wgpu::Device,
    pub(super) queue: wgpu::Queue,
    pub(super) limits: wgpu::Limits,
    reports: Arc<Mutex<Reports>>,
}

impl Context {
    /// Takes over a fresh device and listens to its callbacks.
    pub(super) fn new(device: wgpu::Device, queue: wgpu::Queue) -> Self {
        let reports = Arc::new(Mutex::new(Reports::default()));
        let lost = Arc::clone(&reports);
        device.set_device_lost_callback(move |reason, message| {
            let text =
                if message.is_empty() { format!("{reason:?}") } else { format!("{reason:?}: {message}") };
            lost.lock().unwrap_or_else(PoisonError::into_inner).lost.get_or_insert(text);
        });
        let uncaptured = Arc::clone(&reports);
        device.on_uncaptured_error(Arc::new(move |error: wgpu::Error| {
            log::error!("uncaptured GPU error: {error}");
            uncaptured
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .uncaptured
                .get_or_insert(error.to_string());
        }));
        let limits = device.limits();
        Self { device, queue, limits, reports }
    }

    /// What the callbacks reported since the last check.
    pub(super) fn check(&self, what: &str) -> Result<()> {
        let mut reports = self.reports.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(reason) = &reports.lost {
            return Err(Error::DeviceLost { reason: reason.clone() });
        }
        match reports.uncaptured.take() {
            Some(reason) => Err(Error::Gpu { what: what.to_owned(), reason }),
            None => Ok(()),
        }
    }

    /// Runs work with all error scopes open; `bytes` is what it places, for the message.
    pub(super) fn guard<T>(&self, what: &str, bytes: u64, work: impl FnOnce() -> T) -> Result<T> {
        self.check(what)?;
        let internal = self.device.push_error_scope(wgpu::ErrorFilter::Internal);
        let validation = self.device.push_error_scope(wgpu::ErrorFilter::Validation);
        let memory = self.device.push_error_scope(wgpu::ErrorFilter::OutOfMemory);
        let value = work();
        let memory = pollster::block_on(memory.pop());
        let validation = pollster::block_on(validation.pop());
        let internal = pollster::block_on(internal.pop());
        self.check(what)?;
        if let Some(error) = memory {
            let (what, reason) = (what.to_owned(), error.to_string());
            return Err(Error::OutOfMemory { what, bytes, reason });
        }
        match validation.or(internal) {
            None => Ok(value),
            Some(error) => {
                // A device that was just lost answers with validation errors; its callback comes with the next poll.
                let _ = self.device.poll(wgpu::PollType::Poll);
                self.check(what)?;
                Err(Error::Gpu { what: what.to_owned(), reason: error.to_string() })
            }
        }
    }

    /// A buffer of zeros; refuses what a binding cannot hold.
    pub(super) fn buffer(&self, what: &str, bytes: u64, usage: wgpu::BufferUsages) -> Result<wgpu::Buffer> {
        let bytes = buffer_bytes(bytes);
        let binding = if usage.contains(wgpu::BufferUsages::STORAGE) {
            self.limits.max_storage_buffer_binding_size
        } else {
            u64::MAX
        };
        let most = binding.min(self.limits.max_buffer_size);
        if bytes > most {
            let reason = format!("this GPU takes at most {most} bytes at once");
            return Err(Error::OutOfMemory { what: what.to_owned(), bytes, reason });
        }
        self.guard(what, bytes, || {
            self.device.create_buffer(&wgpu::BufferDescriptor {
                label: Some(what),
                size: bytes,
                usage: usage | wgpu::BufferUsages::COPY_DST,
                mapped_at_creation: false,
            })
        })
    }

    /// A storage buffer of zeros.
    pub(super) fn storage(&self, what: &str, bytes: u64) -> Result<wgpu::Buffer> {
        self.buffer(what, bytes, wgpu::BufferUsages::STORAGE | wgpu::BufferUsages::COPY_SRC)
    }

    /// Writes bytes in pieces; `bytes` is padded with zeros to a multiple of four.
    pub(super) fn write(&self, what: &str, buffer: &wgpu::Buffer, offset: u64, bytes: &[u8]) -> Result<()> {
        self.guard(what, bytes.len() as u64, || {
            for (i, piece) in bytes.chunks(PIECE).enumerate() {
                let at = offset + (i * PIECE) as u64;
                let whole = piece.len() / 4 * 4;
                self.queue.write_buffer(buffer, at, &piece[..whole]);
                if whole < piece.len() {
                    let mut last = [0; 4];
                    last[..piece.len() - whole].copy_from_slice(&piece[whole..]);
                    self.queue.write_buffer(buffer, at + whole as u64, &last);
                }
                if bytes.len() > PIECE / 4 {
                    self.queue.submit([]);
                }
            }
        })
    }

    /// A storage buffer with this content.
    pub(super) fn upload(&self, what: &str, bytes: &[u8]) -> Result<wgpu::Buffer> {
        let buffer = self.storage(what, bytes.len() as u64)?;
        self.write(what, &buffer, 0, bytes)?;
        Ok(buffer)
    }

    /// Waits for what was submitted; a GPU that takes longer than `patience` is lost from now on.
    pub(super) fn wait(&self, what: &str, patience: Option<Duration>) -> Result<()> {
        self.wait_after(what, 0, patience, || ())
    }

    /// Some work, and then [`Self::wait`].
    fn wait_after(
        &self,
        what: &str,
        bytes: u64,
        patience: Option<Duration>,
        work: impl FnOnce(),
    ) -> Result<()> {
        let polled = self.guard(what, bytes, || {
            work();
            self.device.poll(wgpu::PollType::Wait { submission_index: None, timeout: patience })
        })?;
        match polled {
            Ok(_) => Ok(()),
            Err(wgpu::PollError::Timeout) => {
                let reason = format!("it did not answer for {:?}", patience.unwrap_or_default());
                log::error!("{what}: the GPU is given up: {reason}");
                let mut reports = self.reports.lock().unwrap_or_else(PoisonError::into_inner);
                reports.hangs = true;
                let reason = reports.lost.get_or_insert(reason).clone();
                Err(Error::DeviceLost { reason })
            }
            Err(e) => Err(Error::Gpu { what: what.to_owned(), reason: e.to_string() }),
        }
    }

    /// Waits for a mapped readback and copies it out. A pass may take long on a slow GPU; systems themselves take back one
    /// that hangs.
    pub(super) fn read(&self, buffer: &wgpu::Buffer, bytes: u64) -> Result<Vec<u8>> {
        self.read_within(None, buffer, bytes)
    }

    /// [`Self::read`] from a GPU that is lost where it takes longer than `patience`.
    pub(super) fn read_within(
        &self,
        patience: Option<Duration>,
        buffer: &wgpu::Buffer,
        bytes: u64,
    ) -> Result<Vec<u8>> {
        let done = Arc::new(Mutex::new(None));
        let report = Arc::clone(&done);
        let what = "the readback of a result";
        self.wait_after(what, bytes, patience, || {
            buffer.map_async(wgpu::MapMode::Read, 0..bytes, move |result| {
                *report.lock().unwrap_or_else(PoisonError::into_inner) = Some(result);
            });
        })?;
        let refused = |reason: String| Error::Gpu { what: what.to_owned(), reason };
        match done.lock().unwrap_or_else(PoisonError::into_inner).take() {
            Some(Ok(())) => {}
            Some(Err(error)) => return Err(refused(error.to_string())),
            None => return Err(refused("the GPU never answered".into())),
        }
        let view = buffer.get_mapped_range(0..bytes).map_err(|e| refused(e.to_string()))?;
        let copy = view.to_vec();
        drop(view);
        buffer.unmap();
        Ok(copy)
    }
}

impl Drop for Context {
    fn drop(&mut self) {
        if self.reports.lock().unwrap_or_else(PoisonError::into_inner).hangs {
            // The last holder would wait for the work to end. A leak is less.
            std::mem::forget((self.device.clone(), self.queue.clone()));
        }
    }
}

#[cfg(test)]
mod hang;
