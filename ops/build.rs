//! Gives every binary of the package the folder of libtorch as its rpath, so that it starts without LD_LIBRARY_PATH.
//!
//! Cargo hands `DEP_TCH_LIBTORCH_LIB` only to direct dependents of `torch-sys`: that is why Cargo.toml lists it.

fn main() {
    println!("cargo:rerun-if-changed=ops/build.rs");
    println!("cargo:rerun-if-env-changed=LIBTORCH");
    if let Ok(folder) = std::env::var("DEP_TCH_LIBTORCH_LIB") {
        println!("cargo:rustc-link-arg=-Wl,-rpath,{folder}");
        println!("cargo:rustc-env=SHOAL_LIBTORCH_LIB={folder}");
    }
}
