//! Compiles the layer of C++ over c10d, and gives every binary of the package the folder of libtorch as its rpath, so that it starts
//! without LD_LIBRARY_PATH.
//!
//! Cargo hands `DEP_TCH_LIBTORCH_LIB` only to direct dependents of `torch-sys`: that is why Cargo.toml lists it.

use std::path::Path;

const C10D: &str = "src/torch/c10d";

fn main() {
    println!("cargo:rerun-if-changed=ops/build.rs");
    println!("cargo:rerun-if-changed={C10D}");
    println!("cargo:rerun-if-env-changed=LIBTORCH");
    let Ok(folder) = std::env::var("DEP_TCH_LIBTORCH_LIB") else { return };
    println!("cargo:rustc-link-arg=-Wl,-rpath,{folder}");
    println!("cargo:rustc-env=SHOAL_LIBTORCH_LIB={folder}");
    compile_c10d(&Path::new(&folder).with_file_name("include"));
}

fn compile_c10d(headers: &Path) {
    cc::Build::new()
        .cpp(true)
        .std("c++17")
        .opt_level(1)
        .define("USE_DISTRIBUTED", None)
        .define("USE_C10D_GLOO", None)
        .include(C10D)
        .flag(format!("-isystem{}", headers.display()))
        .flag(format!("-isystem{}", headers.join("torch/csrc/api/include").display()))
        .file(format!("{C10D}/shim.cpp"))
        .compile("shoal_c10d");
}
