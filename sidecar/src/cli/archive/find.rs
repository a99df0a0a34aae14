//! `archive find`: every record of one key, in the order in which the archive got them. Metas say
//! which slices may hold the key; only those are read.

use std::ops::ControlFlow;

use pitr_format::key::split_versioned;
use pitr_format::{EncodedKey, Ts};
use pitr_restore_worker::archive::meta_paths;
use pitr_restore_worker::plan::Slice;
use pitr_storage::SharedStorage;

use super::super::args::{OutputArgs, StorageArgs};
use super::super::output::Lines;
use super::super::{Outcome, progress};
use super::record::Record;
use super::window::{Window, WindowArgs};
use super::{Damages, key, name, slices};
use crate::codes::Code;
use crate::failure::Failure;
use crate::storage;

/// Arguments of `archive find`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The key: text as it is, `hex:6B6579`, or `encoded:` with the hex of an encoded key.
    key: String,
    #[command(flatten)]
    storage: StorageArgs,
    #[command(flatten)]
    window: WindowArgs,
    #[command(flatten)]
    output: OutputArgs,
}

/// What is looked for.
struct Wanted {
    key: EncodedKey,
    window: Window,
}

/// Runs the verb.
pub async fn run(args: Args) -> Outcome {
    let key =
        key::parse(&args.key).map_err(|error| Failure::from_error(Code::BadArguments, &error))?;
    let storage = storage::open_existing(&args.storage.storage)?;
    let window = args.window.resolve(&storage).await?;
    let wanted = Wanted { key, window };
    let mut out = Lines::new(args.output.json);
    let mut damages = Damages::default();
    let found = search(&storage, &wanted, &mut out, &mut damages).await?;
    out.flush();
    if found == 0 && !damages.any() {
        let what = "the log has no record of the key in that time";
        return Err(Failure::new(Code::KeyNotInLog, what).at(storage.uri()));
    }
    damages.judge(&storage.uri())
}

/// Prints what is found and gives its number.
async fn search(
    storage: &SharedStorage,
    wanted: &Wanted,
    out: &mut Lines,
    damages: &mut Damages,
) -> Result<u64, Failure> {
    let paths = meta_paths(storage).await?.into_iter().filter(|path| {
        let name = name::read(path);
        let (earliest, latest) = (name.earliest, name.latest);
        let window = wanted.window;
        window.meets(earliest.unwrap_or(Ts::ZERO), latest.unwrap_or(Ts::MAX))
    });
    let mut walk = super::walk(storage, paths.collect());
    let bar = progress::counter("metas read");
    let mut found = 0;
    while let Some(meta) = walk.next().await? {
        bar.inc(1);
        let content = match meta.content {
            Ok(content) => content,
            Err(damage) => {
                damages.meet(damage);
                continue;
            }
        };
        for slice in content
            .slices
            .iter()
            .filter(|slice| wanted.may_be_in(slice))
        {
            found += search_slice(storage, slice, wanted, out, damages).await?;
            if out.closed() {
                return Ok(found);
            }
        }
        // Each meta's findings are seen when they are made, not at the end of the archive.
        out.flush();
    }
    Ok(found)
}

async fn search_slice(
    storage: &SharedStorage,
    slice: &Slice,
    wanted: &Wanted,
    out: &mut Lines,
    damages: &mut Damages,
) -> Result<u64, Failure> {
    let plain = match slices::open(storage, slice).await? {
        Ok(plain) => plain,
        Err(damage) => {
            out.flush();
            damages.meet(damage);
            return Ok(0);
        }
    };
    let (mut found, mut failed) = (0, None);
    let searched = slices::each_record(slice, &plain, |offset, key, value| {
        if !wanted.is(key) {
            return Ok(ControlFlow::Continue(()));
        }
        found += 1;
        failed = out.print(&Record::new(slice, offset, key, value)?).err();
        Ok(match failed {
            Some(_) => ControlFlow::Break(()),
            None => ControlFlow::Continue(()),
        })
    });
    if let Err(damage) = searched {
        damages.meet(damage);
    }
    match failed {
        Some(failure) => Err(failure),
        None => Ok(found),
    }
}

impl Wanted {
    fn may_be_in(&self, slice: &Slice) -> bool {
        let info = &slice.info;
        let in_time = self
            .window
            .meets(Ts::new(info.min_ts), Ts::new(info.max_ts));
        in_time && key::may_hold(&info.start_key, &info.end_key, &self.key)
    }

    fn is(&self, versioned: &[u8]) -> bool {
        split_versioned(versioned)
            .is_ok_and(|(encoded, ts)| encoded == self.key.as_bytes() && self.window.holds(ts))
    }
}
