#!/usr/bin/env bash
# Makes this folder ready to build: checks the Rust toolchain and the C++ compiler, gets cmake and nasm (for the JPEG
# decoder) and libtorch (from the wheels of PyPI, into .libtorch). Afterwards plain `cargo build`, `run` and `test` work.
#
#   ops/setup.sh           for CPUs: downloads 0.6 GB, takes 1.2 GB of disk
#   ops/setup.sh --cuda    for NVIDIA GPUs too: downloads 2.5 GB, takes 4 GB of disk
#
# It says nothing when all is there, and an interrupted run is simply started again. System packages are installed only
# as root and with apt-get; anyone else gets the wheel of cmake and the package of nasm unpacked into .tools, where that can
# be done, or is told what to ask for. A LIBTORCH in the environment is used as it is, if its version is right.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

torch_version=2.11.0
light_wheels=("nvidia-cuda-runtime==13.0.*" "nvidia-cuda-cupti==13.0.*")
# What the headers of libtorch's CUDA half include, and no wheel asks for: the layer over NCCL is compiled with them.
header_wheels=("nvidia-cuda-crt==13.0.*" "nvidia-cuda-cccl==13.0.*")

say() { printf 'setup: %s\n' "$1" >&2; }

# fail WHAT [WAY OUT]...
fail() {
  local line
  for line in "$@"; do say "$line"; done
  exit 2
}

has() { command -v "$1" >/dev/null 2>&1; }

can_install_packages() { [[ $(id -u) == 0 ]] && has apt-get; }

install_packages() {
  say "installing with apt-get: $*"
  local log
  log=$(mktemp)
  if ! { apt-get update && DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends "$@"; } \
    >"$log" 2>&1 </dev/null; then
    tail -n 5 "$log" >&2
    fail "apt-get could not install $*; its log is $log"
  fi
  rm -f "$log"
}

check_machine() {
  [[ $(uname -sm) == "Linux x86_64" ]] ||
    fail "this is $(uname -sm), but the wheels of libtorch that shoal is built with are for Linux on x86-64"
  local glibc
  glibc=$(getconf GNU_LIBC_VERSION 2>/dev/null | awk '{ print $2 }') || true
  [[ -n $glibc ]] || fail "libtorch needs glibc, which this system does not have (Alpine?)"
  not_older "$glibc" 2.28 || fail "glibc here is $glibc; libtorch needs 2.28 or newer (Debian 10, Ubuntu 20.04, RHEL 8)"
}

# not_older HAVE NEED
not_older() { [[ $(printf '%s\n%s\n' "$1" "$2" | sort -V | head -n 1) == "$2" ]]; }

check_rust() {
  if ! has cargo && [[ -x ${CARGO_HOME:-${HOME:-/root}/.cargo}/bin/cargo ]]; then
    fail "cargo is installed but not on the PATH" "run: . \"${CARGO_HOME:-$HOME/.cargo}/env\""
  fi
  has cargo || fail "cargo is missing" \
    "install Rust as https://rustup.rs says: curl --proto '=https' -sSf https://sh.rustup.rs | sh"
  local need have
  need=$(sed -n 's/^rust-version = "\(.*\)"/\1/p' Cargo.toml)
  have=$(rustc --version 2>&1) || fail "rustc does not start: ${have%%$'\n'*}" "with rustup, run: rustup default stable"
  have=$(awk '{ print $2 }' <<<"$have")
  not_older "${have%%-*}" "$need" || fail "Rust $have is too old, $need is needed" "with rustup, run: rustup update stable"
}

check_build_tools() {
  local missing=()
  has c++ && has cc || missing+=(g++)
  has make || missing+=(make)
  has cmake || missing+=(cmake)
  has nasm || missing+=(nasm)
  [[ ${#missing[@]} == 0 ]] && return
  if can_install_packages; then
    install_packages "${missing[@]}"
    return
  fi

  local tool unavailable=()
  for tool in "${missing[@]}"; do
    case $tool in
      cmake) unpack_cmake || unavailable+=(cmake) ;;
      nasm) unpack_nasm || unavailable+=(nasm) ;;
      *) unavailable+=("$tool") ;;
    esac
  done
  [[ ${#unavailable[@]} == 0 ]] || fail "missing: ${unavailable[*]}" \
    "on Debian or Ubuntu: sudo apt-get install ${unavailable[*]}" \
    "on Fedora or RHEL: sudo dnf install ${unavailable[*]/g++/gcc-c++}"
  say "for plain cargo commands: export PATH=\"$PWD/.tools/bin:\$PATH\""
}

# The wheel of cmake holds the program itself.
unpack_cmake() {
  find_pip || return 1
  say "unpacking the wheel of cmake into .tools (30 MB)"
  pip_install --target .tools/cmake --upgrade "cmake>=3.20,<4" || return 1
  mkdir -p .tools/bin
  ln -sfn ../cmake/cmake/data/bin/cmake .tools/bin/cmake
  .tools/bin/cmake --version >/dev/null
}

# nasm needs nothing but glibc: its package works from any folder.
unpack_nasm() {
  has apt-get && has dpkg-deb || return 1
  say "unpacking the package of nasm into .tools (0.5 MB)"
  mkdir -p .tools/nasm .tools/bin
  (cd .tools/nasm && apt-get download nasm && dpkg-deb -x nasm_*.deb .) >/dev/null 2>&1 </dev/null || return 1
  ln -sfn ../nasm/usr/bin/nasm .tools/bin/nasm
  .tools/bin/nasm -v >/dev/null
}

# Sets `pip` to a command that runs pip: the system's, or that of an environment in .tools.
find_pip() {
  [[ -z ${pip:-} ]] || return 0
  local try
  for try in python3 .tools/python/bin/python; do
    if has "$try" && "$try" -m pip --version >/dev/null 2>&1; then
      pip=("$try" -m pip)
      return 0
    fi
  done
  if has python3 && python3 -m venv .tools/python >/dev/null 2>&1; then
    pip=(.tools/python/bin/python -m pip)
    return 0
  fi
  can_install_packages || return 1
  install_packages python3-pip
  pip=(python3 -m pip)
}

# Settings that forbid what is asked for here (--user, a virtual environment) are overruled, mirrors and proxies are kept.
pip_install() {
  local progress=(--quiet)
  [[ -t 2 ]] && progress=()
  PIP_USER=0 PIP_REQUIRE_VIRTUALENV=0 PIP_ROOT_USER_ACTION=ignore PIP_NO_INPUT=1 \
    "${pip[@]}" install "${progress[@]}" --disable-pip-version-check --no-warn-script-location --only-binary=:all: "$@" \
    1>&2 </dev/null
}

# The version of the libtorch in a folder, from the header that all its packages have.
libtorch_version() {
  local header=$1/include/torch/headeronly/version.h
  [[ -f $header ]] || header=$1/include/torch/csrc/api/include/torch/version.h
  [[ -f $header ]] || return 0
  awk '$2 ~ /^TORCH_VERSION_(MAJOR|MINOR|PATCH)$/ { parts = parts sep $3; sep = "." } END { print parts }' "$header"
}

check_given_libtorch() {
  local have
  have=$(libtorch_version "$LIBTORCH")
  [[ -n $have ]] || fail "LIBTORCH=$LIBTORCH holds no libtorch" "unset LIBTORCH, and ops/setup.sh installs one here"
  [[ $have == "$torch_version" ]] || fail "LIBTORCH=$LIBTORCH is version $have, shoal needs $torch_version" \
    "unset LIBTORCH, and ops/setup.sh installs it here"
}

# Holds a lock until the script ends.
one_at_a_time() {
  has flock || return 0
  exec 9<ops/setup.sh
  flock -n 9 && return
  say "waiting for another set-up in this folder"
  flock 9
}

install_libtorch() {
  local kind=$1 stamp=.libtorch/installed download disk
  local wanted="torch==$torch_version $kind"
  one_at_a_time
  if [[ -f $stamp ]] && { [[ $(<"$stamp") == "$wanted" ]] || [[ $(<"$stamp") == "torch==$torch_version cuda" ]]; }; then
    return
  fi

  case $kind in
    cpu) download=0.6 disk=3 ;;
    cuda) download=2.5 disk=8 ;;
  esac
  local free
  free=$(df -Pk . | awk 'NR == 2 { printf "%d", $4 / 1048576 }')
  ((free >= disk)) || fail "$disk GB of free disk are needed here to install libtorch, $free GB are left"
  find_pip || fail "pip is missing" "on Debian or Ubuntu: sudo apt-get install python3-pip" \
    "elsewhere: python3 -m ensurepip, or install the package python3-pip"

  say "installing libtorch $torch_version for $kind into .libtorch: $download GB to download, half a minute to some minutes"
  # Installed aside and renamed when whole, so that an interrupted run leaves nothing that looks finished.
  partial=.libtorch.partial.$$
  trap 'rm -rf "$partial"' EXIT
  trap 'exit 130' INT TERM
  rm -rf .libtorch.partial.*
  mkdir -p "$partial/tmp"
  export TMPDIR=$PWD/$partial/tmp

  local for_target=(--no-compile --python-version 3.12 --implementation cp --abi cp312 --abi abi3 --abi none)
  local glibc
  for glibc in {28..17}; do for_target+=(--platform "manylinux_2_${glibc}_x86_64"); done
  for_target+=(--platform manylinux2014_x86_64)

  local wheels=("torch==$torch_version")
  [[ $kind == cuda ]] || wheels+=("${light_wheels[@]}")
  pip_install "${for_target[@]}" --no-deps --target "$partial/whole" "${wheels[@]}" ||
    fail "pip could not install libtorch, see above" "behind a proxy or mirror, set PIP_PROXY or PIP_INDEX_URL"
  if [[ $kind == cuda ]]; then
    # What the wheel itself asks for, without its Python packages.
    local requirements
    mapfile -t requirements < <(sed -nE 's/^Requires-Dist: ((nvidia-|cuda-toolkit)[^;]*[^; ]).*/\1/p' \
      "$partial"/whole/torch-*.dist-info/METADATA)
    requirements+=("${header_wheels[@]}")
    pip_install "${for_target[@]}" --target "$partial/cuda" "${requirements[@]}" ||
      fail "pip could not install the CUDA libraries, see above"
    cp -Rl "$partial/cuda/." "$partial/whole/"
  fi

  check_libraries "$partial/whole/torch/lib/libtorch_cpu.so"
  [[ $kind == cpu ]] || check_libraries "$partial/whole/torch/lib/libtorch_cuda.so"
  printf '%s\n' "$wanted" >"$partial/whole/installed"
  rm -rf .libtorch
  mv "$partial/whole" .libtorch
  say "libtorch $torch_version is in .libtorch ($(du -sh .libtorch | cut -f 1))"
}

# The driver's own libcuda is not among the wheels.
check_libraries() {
  local missing
  missing=$(ldd "$1" | awk '/not found/ && !/libcuda\.so/ { print $1 }' | sort -u | tr '\n' ' ')
  [[ -z $missing ]] || fail "${1##*/} does not find ${missing% }"
}

kind=cpu
case ${1:-} in
  "") ;;
  --cuda) kind=cuda ;;
  *) fail "unknown argument $1; there is only --cuda" ;;
esac

PATH=$PWD/.tools/bin:$PATH
check_machine
check_rust
check_build_tools
if [[ -n ${LIBTORCH:-} && ! ${LIBTORCH} -ef .libtorch/torch ]]; then
  check_given_libtorch
else
  install_libtorch "$kind"
fi
