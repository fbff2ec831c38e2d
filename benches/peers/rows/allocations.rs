//! Heap allocations per request, told apart by who asked for them.
//!
//! The release binary has an allocator of its own inside, which no tool can look into. So this program runs Tidegate's
//! library (of the tree it was built from, with the C library's allocator) under valgrind's dhat, which knows the stack
//! of every allocation. It belongs to the first of ours and hyper's that is met going up that stack: what `http` or
//! `bytes` allocate is their caller's doing.

use std::{collections::BTreeMap, env, fs, path::Path};

use anyhow::{Context, Result};
use serde::Deserialize;

use super::{counts::driven, requests::CONNECTIONS};
use crate::{
    bed::{Bed, Kind, Setup, cpu::Cores, wire},
    table::{Bar, Line},
};

/// Set for the child that is to be Tidegate instead of this program.
pub(crate) const AS_TIDEGATE: &str = "TIDEGATE_PEERS_SERVE";

const FEW: u64 = 256;
const MANY: u64 = 1280;
const CHUNKS: u64 = 32;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Owner {
    Ours,
    Hyper,
    Nobody,
}

pub(super) async fn row(bed: &Bed) -> Result<Vec<Line>> {
    let under = ["valgrind", "--tool=dhat", "--dhat-out-file=DIR/dhat", "--log-file=DIR/valgrind"];
    let more = ["--num-callers=200", "--read-inline-info=yes", "--fullpath-after="];
    let setup = Setup {
        cores: Cores::All,
        under: [&under[..], &more[..]].concat().into_iter().map(str::to_owned).collect(),
        env: vec![(AS_TIDEGATE, "1")],
        binary: Some(env::current_exe()?),
        ..Setup::one()
    };
    let mut ours = Line::new("heap allocations per request, ours", "", Bar::AtMost(5.0));
    let mut theirs = Line::new("heap allocations per request, hyper's", "", Bar::None);
    let mut frames = Line::new("heap allocations per body frame, ours", "", Bar::AtMost(0.0));
    let mut counts = Vec::new();
    let paths = ["/v1/chat/completions".to_owned(), "/chunks/1".to_owned(), format!("/chunks/{}", 1 + CHUNKS)];
    for (path, numbers) in paths.iter().zip([&[FEW, MANY][..], &[FEW, MANY], &[FEW, MANY]]) {
        let request = wire::post(path, "sk-abcdefgh");
        let mut sites = BTreeMap::<String, (Owner, f64)>::new();
        for (number, sign) in numbers.iter().zip([-1.0, 1.0]) {
            for (site, owner, blocks) in
                read(&driven(bed, Kind::Tidegate, &setup, CONNECTIONS, *number, &request).await?)?
            {
                sites.entry(site).or_insert((owner, 0.0)).1 += sign * blocks / (MANY - FEW) as f64;
            }
        }
        let sum = |wanted| sites.values().filter(|(owner, _)| *owner == wanted).map(|(_, count)| count).sum::<f64>();
        if counts.is_empty() {
            let mut top: Vec<_> =
                sites.iter().filter(|(_, (owner, count))| *owner == Owner::Ours && *count > 0.05).collect();
            top.sort_by(|one, other| other.1.1.total_cmp(&one.1.1));
            top.iter().for_each(|(site, (_, count))| ours.note(format!("{count:.2} at {site}")));
        }
        counts.push((sum(Owner::Ours), sum(Owner::Hyper), sum(Owner::Nobody)));
    }
    if let [plain, one, many] = counts[..] {
        ours.add(Kind::Tidegate, plain.0);
        theirs.add(Kind::Tidegate, plain.1);
        // A hundredth and less is what tables grow by now and then.
        frames.add(Kind::Tidegate, ((many.0 - one.0) / CHUNKS as f64 * 50.0).round() / 50.0);
        if plain.2 > 0.05 {
            theirs.note(format!("{:.2} more belong to nobody", plain.2));
        }
    }
    ours.note("of the library this was built from, not of the binary");
    Ok(vec![ours, theirs, frames])
}

/// What of dhat's file matters here.
#[derive(Debug, Deserialize)]
struct Dhat {
    #[serde(rename = "ftbl")]
    frames: Vec<String>,
    #[serde(rename = "pps")]
    points: Vec<Point>,
}

#[derive(Debug, Deserialize)]
struct Point {
    /// Indexes into the table of frames, innermost first.
    #[serde(rename = "fs")]
    stack: Vec<usize>,
    #[serde(rename = "tbk")]
    blocks: u64,
}

/// Every stack that allocated: where, whose it is, and how many blocks.
fn read(dir: &Path) -> Result<Vec<(String, Owner, f64)>> {
    let text = fs::read_to_string(dir.join("dhat")).context("dhat wrote nothing")?;
    let file: Dhat = serde_json::from_str(&text)?;
    let site = |point: &Point| {
        let mut stack = point.stack.iter().filter_map(|frame| file.frames.get(*frame));
        let (owner, frame) = stack.find_map(|frame| owner(frame).map(|owner| (owner, frame.as_str())))?;
        // `0x1234: function (file:line)`
        let place = frame.rsplit_once(" (").map_or(frame, |(_, place)| place.trim_end_matches(')'));
        Some((place.trim_start_matches(concat!(env!("CARGO_MANIFEST_DIR"), "/")).to_owned(), owner))
    };
    let named = |point: &Point| {
        let (site, owner) = site(point).unwrap_or((String::new(), Owner::Nobody));
        (site, owner, point.blocks as f64)
    };
    Ok(file.points.iter().map(named).collect())
}

/// Whose code a frame is, if it is of either.
fn owner(frame: &str) -> Option<Owner> {
    let (_, place) = frame.rsplit_once(" (")?;
    let ours = concat!(env!("CARGO_MANIFEST_DIR"), "/src/");
    if place.starts_with(ours) || place.starts_with("src/") {
        Some(Owner::Ours)
    } else {
        ["/hyper-", "/hyper-util-", "/h2-"].iter().any(|name| place.contains(name)).then_some(Owner::Hyper)
    }
}
