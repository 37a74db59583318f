//! Compiles the layer of C++ over c10d, NCCL's part as a library of its own where its headers are, and gives every binary of the
//! package the folder of libtorch as its rpath, so that it starts without LD_LIBRARY_PATH.
//!
//! Cargo hands `DEP_TCH_LIBTORCH_LIB` only to direct dependents of `torch-sys`: that is why Cargo.toml lists it.

use std::path::{Path, PathBuf};

const C10D: &str = "src/torch/c10d";

fn main() {
    println!("cargo:rerun-if-changed=ops/build.rs");
    println!("cargo:rerun-if-changed={C10D}");
    println!("cargo:rerun-if-env-changed=LIBTORCH");
    let Ok(folder) = std::env::var("DEP_TCH_LIBTORCH_LIB") else { return };
    println!("cargo:rustc-link-arg=-Wl,-rpath,{folder}");
    println!("cargo:rustc-env=SHOAL_LIBTORCH_LIB={folder}");
    let libtorch = Path::new(&folder).with_file_name("");
    let sources = ["shim", "hops"].map(|name| format!("{C10D}/{name}.cpp"));
    c10d(&libtorch).files(sources).compile("shoal_c10d");
    compile_nccl(&libtorch);
}

/// How its sources are compiled.
fn c10d(libtorch: &Path) -> cc::Build {
    let headers = libtorch.join("include");
    let mut build = cc::Build::new();
    build.cpp(true).std("c++17").opt_level(1).include(C10D);
    build.define("USE_DISTRIBUTED", None).define("USE_C10D_GLOO", None);
    build.flag(format!("-isystem{}", headers.display()));
    build.flag(format!("-isystem{}", headers.join("torch/csrc/api/include").display()));
    build
}

/// The wheels of CUDA lie beside that of libtorch. Without NCCL's there is nothing to do.
fn compile_nccl(libtorch: &Path) {
    println!("cargo:rerun-if-changed=.libtorch/installed");
    let nvidia = libtorch.with_file_name("nvidia");
    let (cuda, nccl) = (nvidia.join("cu13/include"), nvidia.join("nccl/include"));
    if !nccl.join("nccl.h").is_file() || !cuda.join("nv/target").is_file() {
        return;
    }
    let library = PathBuf::from(std::env::var_os("OUT_DIR").expect("cargo sets OUT_DIR")).join("libshoal_nccl.so");
    let mut build = c10d(libtorch);
    build.define("USE_C10D_NCCL", None);
    let mut compiler = build.get_compiler().to_command();
    compiler
        .arg("-shared")
        .arg("-fPIC")
        .args(["-isystem".as_ref(), cuda.as_os_str()])
        .args(["-isystem".as_ref(), nccl.as_os_str()]);
    compiler.arg(format!("{C10D}/nccl.cpp")).arg("-o").arg(&library).arg("-L").arg(libtorch.join("lib"));
    compiler.args(["-ltorch_cuda", "-ltorch_cpu", "-lc10_cuda", "-lc10"]);
    let status = compiler.status().expect("the C++ compiler starts");
    assert!(status.success(), "{C10D}/nccl.cpp does not compile: {compiler:?}");
    println!("cargo:rustc-env=SHOAL_NCCL_LIB={}", library.display());
}
