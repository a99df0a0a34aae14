//! Single stages of our paths, so that a bad ratio of a path has an address.

use std::sync::Arc;

use pitr_budget::MemoryBudget;
use pitr_format::OpKind;
use pitr_format::frame::{FrameEncoder, Scratch};
use pitr_format::record::RecordIter;
use pitr_format::slice::{EncodedSlice, SliceBuilder, SliceId, verify_slice};
use pitr_restore_worker::Env;
use pitr_restore_worker::merge::{SortOptions, Sorter, Tag};
use pitr_restore_worker::sst::SstWriter;
use pitr_restore_worker::sst::rocks::RocksSstFactory;

use crate::Result;
use crate::bench::Bench;
use crate::clock::timed;
use crate::limits::Corpus;
use crate::rows::REGIONS;

/// Plaintext of one slice at most.
const SLICE_LIMIT: u64 = 1 << 30;

/// Appends every record to the builder of its slice and seals all.
fn build(
    corpus: &Corpus,
    encoder: &mut FrameEncoder,
    scratch: &mut Scratch,
) -> Result<Vec<EncodedSlice>> {
    let mut open: Vec<Option<SliceBuilder>> = Vec::new();
    open.resize_with(2 * (REGIONS as usize + 1), || None);
    for (region, records) in &corpus.events {
        for record in records {
            let slot = &mut open[2 * *region as usize + record.cf as usize];
            let slice = slot.get_or_insert_with(|| {
                SliceBuilder::new(SliceId {
                    table_id: 117,
                    region_id: *region,
                    cf: record.cf,
                    op: OpKind::Put,
                    is_meta: false,
                })
            });
            slice.append(record)?;
        }
    }
    let mut encoded = Vec::new();
    for slice in open.into_iter().flatten() {
        encoded.push(slice.encode(encoder, Some(scratch))?);
    }
    Ok(encoded)
}

/// Records to sealed slices, without the threads around it.
pub fn build_slices(bench: &mut Bench, corpus: &Arc<Corpus>) -> Result<()> {
    let corpus = Arc::clone(corpus);
    let (mut encoder, mut scratch) = (FrameEncoder::new()?, Scratch::new());
    bench.stage(
        "slices",
        &["copy", "crc64", "sha256", "zstd-1"],
        move || {
            let (time, done) = timed(|| build(&corpus, &mut encoder, &mut scratch));
            done.map(|_| time)
        },
    );
    Ok(())
}

/// Stored slices to proven plaintext.
pub fn verify_slices(bench: &mut Bench, corpus: &Arc<Corpus>) -> Result<()> {
    let built = build(corpus, &mut FrameEncoder::new()?, &mut Scratch::new())?;
    let stored = |slice: EncodedSlice| (slice.info, slice.pieces.concat());
    let sealed: Vec<_> = built.into_iter().map(stored).collect();
    bench.stage("verify", &["crc64", "sha256", "unzstd"], move || {
        let (time, done) = timed(|| -> Result<()> {
            for (info, stored) in &sealed {
                std::hint::black_box(verify_slice(info, stored, SLICE_LIMIT)?);
            }
            Ok(())
        });
        done.map(|()| time)
    });
    Ok(())
}

fn sorters(corpus: &Corpus, dir: &std::path::Path) -> Result<[Sorter; 2]> {
    let budget = MemoryBudget::new(u64::MAX);
    let options = SortOptions {
        memory: 4 * corpus.bytes as usize + (1 << 20),
        ..SortOptions::default()
    };
    let mut sorters =
        ["default", "write"].map(|name| Sorter::new(dir, name, options.clone(), budget.nothing()));
    for (cf, plain) in &corpus.slices {
        for record in RecordIter::new(plain) {
            let (key, value) = record?;
            sorters[*cf as usize].push(key, Tag::Value, value)?;
        }
    }
    Ok(sorters)
}

/// Records into the external sort and out of it.
pub fn sort(bench: &mut Bench, corpus: &Arc<Corpus>) -> Result<()> {
    let (corpus, dir) = (Arc::clone(corpus), tempfile::tempdir()?);
    bench.stage("sorter", &["copy", "sort"], move || {
        let (time, done) = timed(|| -> Result<()> {
            for sorter in sorters(&corpus, dir.path())? {
                let sorted = sorter.finish()?;
                let mut stream = sorted.stream()?;
                while let Some(entry) = stream.peek() {
                    std::hint::black_box(&entry);
                    stream.advance()?;
                }
            }
            Ok(())
        });
        done.map(|()| time)
    });
    Ok(())
}

/// Sorted records into SST files.
pub fn write_ssts(bench: &mut Bench, corpus: &Arc<Corpus>) -> Result<()> {
    let (corpus, dir) = (Arc::clone(corpus), tempfile::tempdir()?);
    let (factory, env) = (RocksSstFactory::default(), Env::default());
    bench.stage("sst", &["sst-lz4"], move || {
        let mut records: Vec<_> = corpus.records().collect();
        records.sort_by(|a, b| (a.cf, a.key).cmp(&(b.cf, b.key)));
        let (time, done) = timed(|| -> Result<Vec<_>> {
            let mut files = Vec::new();
            for of_cf in records.chunk_by(|a, b| a.cf == b.cf) {
                let (random, cf) = (env.random.as_ref(), of_cf[0].cf);
                let mut writer = SstWriter::create(&factory, random, dir.path(), cf)?;
                for record in of_cf {
                    writer.put(record.key, record.value)?;
                }
                files.push(writer.finish()?);
            }
            Ok(files)
        });
        for file in done? {
            std::fs::remove_file(file.path)?;
        }
        Ok(time)
    });
    Ok(())
}
