//! What fuzzing has found worth keeping, run through the NBD protocol again.

use std::path::Path;

use blockloom::export::nbd::proto::fuzz_one;

/// Each file as it is, then cut short at every length: a peer may vanish anywhere.
#[test]
fn every_session_of_the_corpus_keeps_the_invariants() {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus/nbd_session");
    let mut replayed = 0;
    for entry in std::fs::read_dir(corpus).expect("the corpus") {
        let session = std::fs::read(entry.expect("an entry").path()).expect("a session");
        for len in 0..=session.len() {
            fuzz_one(&session[..len]);
        }
        replayed += 1;
    }
    assert!(replayed >= 10, "only {replayed} sessions");
}
