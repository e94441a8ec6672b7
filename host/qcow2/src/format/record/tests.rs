//! Records to bytes and back, damaged, and compared.

use super::bytes::{BELOW_HEAD_BYTES, BITMAPS_HEAD_BYTES, FILE_BYTES};
use super::*;
use crate::limits::RECORD_FILES_MAX;
use crate::testing::{Geometry, blank_image};

fn file(kind: FileKind, inode: u64) -> FileIdentity {
    FileIdentity { kind, size_bytes: 1 << 40, modified_ns: 7, changed_ns: u64::MAX, inode }
}

fn record(below: Below) -> Record {
    let mut record = Record { below, ..Record::EMPTY };
    for (name, generation) in [("a", 1), ("täglich", u64::MAX)] {
        let identity = BitmapIdentity { uuid: [generation as u8; 16], generation };
        record.set_identity(name.as_bytes(), Some(identity));
    }
    record
}

fn files() -> Vec<FileIdentity> {
    vec![file(FileKind::Shape, 1), file(FileKind::Below, 2), file(FileKind::Data, 3)]
}

#[test]
fn what_is_written_is_read() {
    let check = |record: &Record| {
        assert_eq!(Below::decode(&record.below.encode()).as_ref(), Some(&record.below));
        assert_eq!(
            decode_bitmaps(&encode_bitmaps(&record.bitmaps)).as_ref(),
            Some(&record.bitmaps)
        );
    };
    check(&Record::EMPTY);
    let full = record(Below::Files(files()));
    for record in [record(Below::Unknown), record(Below::Files(vec![])), full.clone()] {
        check(&record);
        check(&record.folded());
    }
    let len = |record: &Record| record.below.encode().len();
    assert!(len(&full.folded()) < len(&full));
    // There is room for the digest from the beginning.
    assert_eq!(len(&full.folded()), len(&Record::EMPTY));
    let many = Below::Files(vec![file(FileKind::Below, 1); RECORD_FILES_MAX as usize + 1]);
    assert!(matches!(Below::decode(&many.encode()), Some(Below::Digest(_))));
    let mut fewer = full;
    assert_eq!(fewer.identity("täglich".as_bytes()).map(|it| it.generation), Some(u64::MAX));
    fewer.retain([&b"a"[..], b"other"].into_iter());
    assert_eq!(fewer.identity("täglich".as_bytes()), None);
    assert_eq!(fewer.identity(b"a").map(|it| it.uuid), Some([1; 16]));
}

#[test]
fn what_is_malformed_counts_as_not_there() {
    let (bitmaps, below) = {
        let record = record(Below::Files(files()));
        (encode_bitmaps(&record.bitmaps), record.below.encode())
    };
    for len in 0..bitmaps.len() {
        assert_eq!(decode_bitmaps(&bitmaps[..len]), None, "{len} bytes");
    }
    for len in 0..below.len() {
        assert_eq!(Below::decode(&below[..len]), None, "{len} bytes");
    }
    assert_eq!(decode_bitmaps(&[&bitmaps[..], &[0]].concat()), None);
    assert_eq!(Below::decode(&[&below[..], &[0]].concat()), None);
    let mut random = fastrand::Rng::with_seed(7);
    for at in 0..BITMAPS_HEAD_BYTES {
        let mut damaged = bitmaps.clone();
        damaged[at] ^= random.u8(1..);
        assert_eq!(decode_bitmaps(&damaged), None, "byte {at}");
    }
    for at in 0..below.len() {
        let mut damaged = below.clone();
        damaged[at] ^= random.u8(1..);
        // Padding does not count.
        let place = at.checked_sub(BELOW_HEAD_BYTES).map(|at| at % FILE_BYTES);
        let is_padding = place.is_some_and(|place| (4..8).contains(&place));
        assert_eq!(Below::decode(&damaged).is_none(), !is_padding, "byte {at}");
    }
    for _ in 0..10_000 {
        let mut noise = vec![0; random.usize(0..200)];
        noise.fill_with(|| random.u8(..4));
        let _ = (Below::decode(&noise), decode_bitmaps(&noise));
    }
}

/// As in any image: what another version wrote, and what is there twice, is nothing; it can be replaced.
#[test]
fn a_header_has_one_record_or_none() {
    let image = blank_image(&Geometry::usual(1 << 20));
    let mut header = Header::parse(&image).expect("a header");
    assert_eq!(header.record(), None);
    let full = record(Below::Files(files()));
    header.set_record(Some(&full), true);
    assert_eq!((header.record().as_ref(), header.is_record_current()), (Some(&full), true));
    let mut cluster = header.encode().expect("room");
    cluster.resize(header.cluster_size.bytes() as usize, 0);
    let again = Header::parse(&cluster).expect("a header");
    assert_eq!(again, header);
    let twice =
        header.extensions.iter().find(|it| matches!(it, Extension::Unknown { .. })).cloned();
    header.extensions.extend(twice);
    assert_eq!(header.record(), None);
    header.set_record(Some(&full), false);
    assert_eq!((header.record().as_ref(), header.is_record_current()), (Some(&full), false));
    if let Some(Extension::Unknown { data, .. }) = header.extensions.first_mut() {
        data[3] = 2;
    }
    assert_eq!(header.record(), None);
    header.set_record(None, true);
    assert!(header.extensions.is_empty() && !header.is_record_current());
}

#[test]
fn files_are_compared_one_by_one() {
    let mut now = files();
    let then = [Below::Files(files()), record(Below::Files(files())).folded().below];
    let check = |now: &[FileIdentity], expect: [Fit; 2]| {
        assert_eq!(then.each_ref().map(|then| then.fit(now)), expect);
    };
    check(&now, [Fit::Same; 2]);
    now[2].modified_ns += 1;
    check(&now, [Fit::DataDiffers(2), Fit::Differs(None)]);
    now[1].inode += 1;
    check(&now, [Fit::Differs(Some(1)), Fit::Differs(None)]);
    check(&files()[..2], [Fit::Differs(None); 2]);
    now = files();
    now[2].kind = FileKind::Below;
    check(&now, [Fit::Differs(Some(2)), Fit::Differs(None)]);
    assert_eq!(Below::Unknown.fit(&[]), Fit::Differs(None));
    assert_eq!(Below::Files(vec![]).fit(&[]), Fit::Same);
}
