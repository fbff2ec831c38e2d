//! Decodes a copy of a compressed answer as it passes by, and stops where that gets too dear.

use std::io::{self, Write};

use flate2::write::{DeflateDecoder, GzDecoder, ZlibDecoder};

use super::scan::Scan;

/// Feeds a scan with what its input unpacks to.
pub(super) struct Inflate {
    coding: Coding,
}

enum Coding {
    Gzip(GzDecoder<Bounded>),
    Zlib(ZlibDecoder<Bounded>),
    /// RFC 9110, 8.4.1.2: some send the deflate data without the zlib wrapper.
    Raw(DeflateDecoder<Bounded>),
    /// `deflate`, of which the two bytes that tell the last two apart have not come; perhaps the first has.
    Undecided(Bounded, Option<u8>),
    /// Damaged, or unpacked to more than is looked at; what was found before stands.
    Ended(Scan),
}

impl Inflate {
    pub(super) fn gzip(scan: Scan) -> Self {
        Self { coding: Coding::Gzip(GzDecoder::new(Bounded::new(scan))) }
    }

    pub(super) fn deflate(scan: Scan) -> Self {
        Self { coding: Coding::Undecided(Bounded::new(scan), None) }
    }

    pub(super) fn feed(&mut self, chunk: &[u8]) {
        if let Coding::Undecided(out, first) = &mut self.coding {
            let mut bytes = first.iter().chain(chunk).copied();
            let (one, two) = (bytes.next(), bytes.next());
            let (Some(one), Some(two)) = (one, two) else {
                *first = one;
                return;
            };
            let (out, first) = (std::mem::take(out), first.take());
            // RFC 1950, 2.2: the method is 8, and the two bytes are a multiple of 31.
            self.coding = if one & 0x0f == 8 && u16::from_be_bytes([one, two]) % 31 == 0 {
                Coding::Zlib(ZlibDecoder::new(out))
            } else {
                Coding::Raw(DeflateDecoder::new(out))
            };
            if let Some(first) = first {
                self.unpack(&[first]);
            }
        }
        self.unpack(chunk);
    }

    fn unpack(&mut self, chunk: &[u8]) {
        let done = match &mut self.coding {
            Coding::Gzip(decoder) => write(decoder, GzDecoder::get_mut, chunk),
            Coding::Zlib(decoder) => write(decoder, ZlibDecoder::get_mut, chunk),
            Coding::Raw(decoder) => write(decoder, DeflateDecoder::get_mut, chunk),
            Coding::Undecided(..) | Coding::Ended(_) => Ok(()),
        };
        if done.is_err() {
            let out = match &mut self.coding {
                Coding::Gzip(decoder) => std::mem::take(decoder.get_mut()),
                Coding::Zlib(decoder) => std::mem::take(decoder.get_mut()),
                Coding::Raw(decoder) => std::mem::take(decoder.get_mut()),
                Coding::Undecided(..) | Coding::Ended(_) => return,
            };
            self.coding = Coding::Ended(out.scan);
        }
    }

    pub(super) fn scan(&self) -> &Scan {
        match &self.coding {
            Coding::Gzip(decoder) => &decoder.get_ref().scan,
            Coding::Zlib(decoder) => &decoder.get_ref().scan,
            Coding::Raw(decoder) => &decoder.get_ref().scan,
            Coding::Undecided(out, _) => &out.scan,
            Coding::Ended(scan) => scan,
        }
    }
}

/// Unpacks all of `chunk`: what a decoder holds back would be missing at the end.
fn write<D: Write>(decoder: &mut D, out: fn(&mut D) -> &mut Bounded, chunk: &[u8]) -> io::Result<()> {
    out(decoder).allow(chunk.len());
    decoder.write_all(chunk)?;
    decoder.flush()
}

/// A scan that takes only so many bytes.
#[derive(Default)]
struct Bounded {
    scan: Scan,
    left: usize,
}

/// Unpacked bytes that are looked at whatever they were packed in.
const FREE_BYTES: usize = 1024 * 1024;
/// And this many for each packed one. Answers unpack to some 20 times their size, a bomb to 1,000 times. A guess.
const RATIO_MAX: usize = 64;

impl Bounded {
    fn new(scan: Scan) -> Self {
        Self { scan, left: FREE_BYTES }
    }

    fn allow(&mut self, packed: usize) {
        self.left = self.left.saturating_add(packed.saturating_mul(RATIO_MAX));
    }
}

impl Write for Bounded {
    fn write(&mut self, unpacked: &[u8]) -> io::Result<usize> {
        self.left = self.left.checked_sub(unpacked.len()).ok_or(io::ErrorKind::FileTooLarge)?;
        self.scan.feed(unpacked);
        Ok(unpacked.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
