//! Buffers for data that may contain secrets.

use zeroize::Zeroize;

/// A byte queue that zeroes its memory when it grows, when bytes are consumed, and on drop. An empty queue allocates no
/// memory.
#[derive(Default)]
pub(crate) struct WipedBuffer(Vec<u8>);

impl WipedBuffer {
    /// Appends bytes.
    pub(crate) fn push(&mut self, bytes: &[u8]) {
        if self.0.capacity() - self.0.len() < bytes.len() {
            // Reallocation would leave an unwiped copy: grow into a new vector and wipe the old one.
            let mut grown = Vec::with_capacity((self.0.len() + bytes.len()).next_power_of_two());
            grown.extend_from_slice(&self.0);
            self.0.zeroize();
            self.0 = grown;
        }
        self.0.extend_from_slice(bytes);
    }

    /// Removes `count` bytes from the front.
    pub(crate) fn consume(&mut self, count: usize) {
        let rest = self.0.len().saturating_sub(count);
        if rest == 0 {
            self.0.zeroize();
            self.0 = Vec::new();
            return;
        }
        self.0.copy_within(count.., 0);
        if let Some(left_over) = self.0.get_mut(rest..) {
            left_over.zeroize();
        }
        self.0.truncate(rest);
    }

    pub(crate) fn as_slice(&self) -> &[u8] {
        &self.0
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Allocated memory, in bytes.
    pub(crate) fn capacity(&self) -> usize {
        self.0.capacity()
    }
}

impl Drop for WipedBuffer {
    fn drop(&mut self) {
        self.0.zeroize();
    }
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn bytes_leave_in_order(steps in vec((vec(any::<u8>(), 0..40), 0usize..40), 0..40)) {
            let (mut buffer, mut model) = (WipedBuffer::default(), Vec::new());
            for (pushed, consumed) in steps {
                buffer.push(&pushed);
                model.extend(pushed);
                let consumed = consumed.min(model.len());
                buffer.consume(consumed);
                model.drain(..consumed);
                prop_assert_eq!(buffer.as_slice(), &model);
                prop_assert!(!model.is_empty() || buffer.capacity() == 0);
            }
        }
    }
}
