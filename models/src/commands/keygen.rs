//! `calora keygen`: keys to sign and to encrypt adapters with.

use std::path::PathBuf;

use anyhow::Result;
use calora::adapter::{SecretKey, SigningKey};
use calora_models::keys::{write_encryption_key, write_signing_key};

use crate::output;

/// Writes a new key to a file that only its owner reads; never over an older one.
#[derive(clap::Args)]
#[group(required = true, multiple = false)]
pub(crate) struct Args {
    /// A signing key; the public half, which apps trust, goes to FILE.pub and to stdout.
    #[arg(long, value_name = "FILE")]
    sign: Option<PathBuf>,
    /// A key that encrypts and opens adapters.
    #[arg(long, value_name = "FILE")]
    encrypt: Option<PathBuf>,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    if let Some(path) = &args.encrypt {
        write_encryption_key(path, &SecretKey::generate()?)?;
    }
    if let Some(path) = &args.sign {
        let key = SigningKey::generate()?;
        write_signing_key(path, &key)?;
        output::line(key.public())?;
    }
    Ok(())
}
