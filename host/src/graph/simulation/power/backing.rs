//! An image gets another backing file, while power is lost at every write.

use std::cell::RefCell;
use std::collections::BTreeMap;

use blockloom_qcow2::testing::{Container, MemoryStorage, block_on};
use blockloom_qcow2::{Image, Result, Storage, read_header};

use super::replay::Replay;
use super::{Geometry, own};
use crate::graph::simulation::{image, judge};
use crate::io::sim::{Random, Recorded};

/// Memory that notes what is written to it.
struct Noting {
    memory: MemoryStorage,
    log: RefCell<Vec<Recorded>>,
}

const FILE: &str = "top.img";

impl Noting {
    fn note(&self, begins: impl FnOnce(u64) -> Recorded, ends: impl FnOnce(u64) -> Recorded) {
        let mut log = self.log.borrow_mut();
        let op = log.len() as u64;
        log.push(begins(op));
        log.push(ends(op));
    }
}

impl Storage for Noting {
    async fn read(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        self.memory.read(offset, buf).await
    }

    async fn write(&self, offset: u64, bytes: &[u8]) -> Result<()> {
        self.note(
            |op| Recorded::Writes { op, file: FILE.into(), offset, bytes: bytes.to_vec() },
            |op| Recorded::HasWritten { op },
        );
        self.memory.write(offset, bytes).await
    }

    async fn zero(&self, offset: u64, len: u64) -> Result<()> {
        self.write(offset, &vec![0; len as usize]).await
    }

    async fn discard(&self, _: u64, _: u64) -> Result<()> {
        Ok(())
    }

    async fn flush(&self) -> Result<()> {
        self.note(|op| Recorded::Syncs { op, file: FILE.into() }, |op| Recorded::HasSynced { op });
        self.memory.flush().await
    }

    async fn len_bytes(&self) -> Result<u64> {
        self.memory.len_bytes().await
    }

    async fn set_len(&self, len: u64) -> Result<()> {
        self.log.borrow_mut().push(Recorded::SetLen { file: FILE.into(), len });
        self.memory.set_len(len).await
    }
}

/// Bytes of an image, sectors of it, and the name of its backing.
fn look(bytes: Vec<u8>, backing: &[u8]) -> std::result::Result<(Vec<u8>, Vec<u8>), String> {
    let storage = MemoryStorage::new(bytes);
    judge::leaks(&storage)?;
    let header = block_on(read_header(&storage)).map_err(|error| error.to_string())?;
    let name = header.backing_name.clone().unwrap_or_default();
    let container = Container { file: storage, data: None };
    let options = blockloom_qcow2::image::OpenOptions::default();
    let image = block_on(Image::open(&container, &options)).map_err(|error| error.to_string())?;
    let mut shown = vec![0; image.size_bytes() as usize];
    let backing = Some(backing.to_vec());
    let disk = blockloom_qcow2::testing::Disk { image, container, backing };
    block_on(disk.read(0, &mut shown)).map_err(|error| error.to_string())?;
    Ok((name, shown))
}

#[test]
fn power_is_lost_while_a_backing_file_is_replaced() {
    let backing = vec![0x77; 64 << 10];
    let long = "a much longer name of an image, so that the header is laid out in another way";
    let mut judged = 0;
    for cluster_bits in [9, 10, 12] {
        let geometry = Geometry { cluster_bits, ..Geometry::PLAIN };
        let made =
            image::fresh("top", &geometry, 64 << 10, Some("base"), &own((0..100).step_by(2)));
        let content = made.file.content();
        let (_, expected) = look(content.clone(), &backing).expect("an image");
        let storage =
            Noting { memory: MemoryStorage::new(content.clone()), log: RefCell::default() };
        let mut names = vec!["base.img".to_owned()];
        block_on(async {
            let options = blockloom_qcow2::image::OpenOptions {
                writable: true,
                ..blockloom_qcow2::image::OpenOptions::default()
            };
            let image = Image::open(&storage, &options).await.expect("an image");
            for name in ["b.img", long, "base.img"] {
                // Where there is no room for it, it stays as it is.
                let named = image.set_backing_file(&storage, Some(name.as_bytes()), Some(b"qcow2"));
                if named.await.is_ok() {
                    names.push(name.to_owned());
                }
            }
            image.close(&storage).await.expect("memory");
        });
        assert!(names.len() > 1, "some name has room");
        let mut replay = Replay::new(BTreeMap::from([(FILE.to_owned(), content)]));
        let mut random = Random::new(3);
        for recorded in storage.log.into_inner() {
            replay.add(&recorded);
            for mood in 0..20 {
                let left = replay.left(mood, &mut random);
                let (name, shown) = look(left[FILE].clone(), &backing)
                    .unwrap_or_else(|wrong| panic!("{cluster_bits}: {wrong}"));
                let name = String::from_utf8_lossy(&name).into_owned();
                assert!(names.contains(&name), "{name:?} is none of {names:?}");
                assert!(shown == expected, "other bytes under {name}");
                judged += 1;
            }
        }
    }
    assert!(judged > 500, "{judged} crashes prove little");
}
