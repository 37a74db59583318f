//! Plain loops, compiled for the vectors that a processor has.

/// Defines a function that runs a plain one, which must be `inline(always)`: compiled once for any processor, once for those with AVX2
/// and once for those with AVX-512. The outcome is the same to the last bit, for arithmetic is neither fused nor put in another order.
macro_rules! compiled_for_vectors {
    ($(#[$note:meta])* $visible:vis fn $name:ident($($argument:ident: $kind:ty),*) $(-> $out:ty)? = $plain:ident) => {
        $(#[$note])*
        $visible fn $name($($argument: $kind),*) $(-> $out)? {
            #[target_feature(enable = "avx512f,avx512bw,avx512vl")]
            fn with_avx512($($argument: $kind),*) $(-> $out)? {
                $plain($($argument),*)
            }
            #[target_feature(enable = "avx2")]
            fn with_avx2($($argument: $kind),*) $(-> $out)? {
                $plain($($argument),*)
            }
            if is_x86_feature_detected!("avx512bw") && is_x86_feature_detected!("avx512vl") {
                // SAFETY: the processor has what the function is compiled for.
                return unsafe { with_avx512($($argument),*) };
            }
            if is_x86_feature_detected!("avx2") {
                // SAFETY: the processor has what the function is compiled for.
                return unsafe { with_avx2($($argument),*) };
            }
            $plain($($argument),*)
        }
    };
}

pub(super) use compiled_for_vectors;
