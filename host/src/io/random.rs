//! Numbers that nobody else has drawn.

/// 128 bits by chance; in a simulation, the next of its numbers.
pub(crate) fn random_bytes() -> [u8; 16] {
    #[cfg(test)]
    if let Some(number) = super::sim::unique() {
        return number.to_be_bytes();
    }
    let mut bytes = [0; 16];
    // So few bytes come at once, or never: on kernels without the call.
    if rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty()).is_err() {
        let now = super::wall_clock().as_nanos() ^ super::thread_time().as_nanos().rotate_left(64);
        bytes = now.to_be_bytes();
    }
    bytes
}
