//! libtorch's refusals as dsr's errors: one sentence, without the C++ stack.

use std::ffi::CStr;

use crate::error::{Code, Error};

/// The message of a storage whose memory is given back, for whoever asks for an element.
pub(super) const RELEASED: &CStr = c"the memory of this parameter is released";

/// The error for libtorch's own words: [`Code::Memory`] where they speak of exhausted memory,
/// [`Code::CallOrder`] where a parameter is not here, else [`Code::Torch`].
pub(crate) fn refusal(words: &str) -> Error {
    let words = without_backtrace(words);
    if RELEASED.to_str().is_ok_and(|released| words.contains(released)) {
        return Error::new(
            Code::CallOrder,
            "this is a part of a parameter that is not in this device's memory now",
        )
        .hint("ZeRO stage 3 and offload release a layer's parameters when the layer has run")
        .hint("keep a copy of what is needed later: p.weight[0].detach().clone()");
    }
    if let Some(words) = exhausted(words) {
        return Error::new(Code::Memory, words)
            .hint("a smaller micro_batch_size, a shorter sequence or a smaller model needs less");
    }
    Error::new(Code::Torch, words)
}

/// The words of libtorch about exhausted memory, where it has some.
fn exhausted(words: &str) -> Option<String> {
    if let Some((before, after)) = words.split_once("[enforce fail at alloc_cpu.cpp") {
        let size = after.split_once("tried to allocate ").map_or("", |(_, size)| size);
        let size = size.split_once(" bytes").map_or("its", |(size, _)| size);
        return Some(format!("{before}the system refuses {size} bytes of memory"));
    }
    let says = ["out of memory", "can't allocate memory", "std::bad_alloc"];
    says.iter().any(|mark| words.contains(mark)).then(|| words.to_owned())
}

/// The message of a libtorch error without the C++ stack that libtorch appends to it.
pub(crate) fn without_backtrace(text: &str) -> &str {
    let end = ["\nException raised from", "C++ CapturedTraceback", "\nframe #"]
        .iter()
        .filter_map(|mark| text.find(mark))
        .min()
        .unwrap_or(text.len());
    text[..end].trim_end()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_loses_its_stack() {
        let text =
            "size mismatch\nException raised from f at x.cpp:1 (most recent call first):\n#0";
        assert_eq!(without_backtrace(text), "size mismatch");
        assert_eq!(without_backtrace("a\nC++ CapturedTraceback:\n#4 f"), "a");
        assert_eq!(without_backtrace("two\nlines"), "two\nlines");
    }

    #[test]
    fn exhausted_memory_is_one_sentence() {
        let text = "ones: [enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't \
                    allocate memory: you tried to allocate 3600000000 bytes. Error code 12 (Cannot \
                    allocate memory)\nframe #0: c10::ThrowEnforceNotMet(char const*)";
        let e = refusal(text);
        assert_eq!(e.code(), Code::Memory);
        assert_eq!(e.message(), "ones: the system refuses 3600000000 bytes of memory");
        assert_eq!(refusal("CUDA out of memory. Tried").code(), Code::Memory);
        assert_eq!(refusal("size mismatch").code(), Code::Torch);
    }
}
