//! PyTorch's distributed engine, c10d, as libtorch carries it: a store, a group of ranks, and the reducer of
//! DistributedDataParallel.
//!
//! `shim.cpp` beside this file is the layer of C++ below. A [`Store`] holds small values for all ranks; a [`Group`] sums, spreads and
//! gathers tensors; a [`Reducer`] averages gradients while the backward pass still runs. All ranks of a group must make the same calls
//! in the same order. What can go wrong: a rank that is gone, hangs or cannot be reached; the error has c10d's own words.

pub mod nccl;

use crate::error::{Error, Result};
use std::ffi::{CStr, CString, c_char, c_void};
use std::ptr::null_mut;
use std::time::Duration;
use tch::Tensor;

#[repr(C)]
struct StoreBox {
    _private: [u8; 0],
}

#[repr(C)]
struct GroupBox {
    _private: [u8; 0],
}

#[repr(C)]
struct ReducerBox {
    _private: [u8; 0],
}

type CTensor = *mut c_void;
/// Makes the backend of CUDA devices: what the library of NCCL exports.
pub type BackendMaker = unsafe extern "C" fn(*mut c_void, i32, i32, i64) -> *mut c_void;

unsafe extern "C" {
    fn shoal_c10d_error() -> *const c_char;
    fn shoal_store_tcp(
        host: *const c_char,
        port: u16,
        is_server: bool,
        timeout_ms: i64,
        taken: *mut u16,
        made: *mut *mut StoreBox,
    ) -> i32;
    fn shoal_store_under(store: *mut StoreBox, prefix: *const c_char, made: *mut *mut StoreBox) -> i32;
    fn shoal_store_clone(store: *mut StoreBox, made: *mut *mut StoreBox) -> i32;
    fn shoal_store_set(store: *mut StoreBox, key: *const c_char, value: *const u8, length: usize) -> i32;
    fn shoal_store_get(
        store: *mut StoreBox,
        key: *const c_char,
        take: unsafe extern "C" fn(*mut c_void, *const u8, usize),
        context: *mut c_void,
    ) -> i32;
    fn shoal_store_has(store: *mut StoreBox, key: *const c_char, found: *mut bool) -> i32;
    fn shoal_store_add(store: *mut StoreBox, key: *const c_char, amount: i64, sum: *mut i64) -> i32;
    fn shoal_store_free(store: *mut StoreBox);
    fn shoal_group_new(
        store: *mut StoreBox,
        rank: i32,
        size: i32,
        timeout_ms: i64,
        host: *const c_char,
        cuda: Option<BackendMaker>,
        made: *mut *mut GroupBox,
    ) -> i32;
    fn shoal_all_reduce(group: *mut GroupBox, tensor: CTensor, op: i32) -> i32;
    fn shoal_broadcast(group: *mut GroupBox, tensor: CTensor, root: i32) -> i32;
    fn shoal_all_gather(group: *mut GroupBox, all: CTensor, part: CTensor) -> i32;
    fn shoal_all_to_all(group: *mut GroupBox, to: CTensor, from: CTensor, takes: *const i64, sends: *const i64) -> i32;
    fn shoal_sum_over_ranks(group: *mut GroupBox, part: CTensor, sum: *mut CTensor) -> i32;
    fn shoal_group_free(group: *mut GroupBox);
    fn shoal_reducer_new(
        group: *mut GroupBox,
        weights: *const CTensor,
        count: usize,
        bucket_bytes: i64,
        made: *mut *mut ReducerBox,
    ) -> i32;
    fn shoal_reducer_prepare(reducer: *mut ReducerBox) -> i32;
    fn shoal_reducer_free(reducer: *mut ReducerBox);
}

/// What ranks make of their tensors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reduction {
    /// The sum.
    Sum = 0,
    /// The smallest.
    Min = 1,
    /// The largest.
    Max = 2,
}

/// Small values by name, for all ranks, kept by one process.
#[derive(Debug)]
pub struct Store {
    raw: *mut StoreBox,
}

// SAFETY: c10d's stores lock themselves.
unsafe impl Send for Store {}
// SAFETY: as above.
unsafe impl Sync for Store {}

impl Store {
    /// The store at `host`:`port`. Tries to reach it for as long as `timeout`, and later waits no longer than that for a value.
    pub fn reach(host: &str, port: u16, timeout: Duration) -> Result<Self> {
        Self::tcp(host, port, false, timeout).map(|(store, _)| store)
    }

    /// A store that this process keeps itself, at `host`:`port`, any where that is 0; with the port that it has got.
    pub fn keep(host: &str, port: u16, timeout: Duration) -> Result<(Self, u16)> {
        Self::tcp(host, port, true, timeout)
    }

    fn tcp(host: &str, port: u16, is_server: bool, timeout: Duration) -> Result<(Self, u16)> {
        let host = text(host)?;
        let (ms, mut taken) = (millis(timeout), port);
        // SAFETY: the text lives through the call, both places are valid for what goes there.
        let raw = made(|place| unsafe { shoal_store_tcp(host.as_ptr(), port, is_server, ms, &raw mut taken, place) })?;
        Ok((Self { raw }, taken))
    }

    /// The same store, under names that begin with `prefix`.
    pub fn under(&self, prefix: &str) -> Result<Self> {
        let prefix = text(prefix)?;
        // SAFETY: as above; `self` is alive.
        made(|place| unsafe { shoal_store_under(self.raw, prefix.as_ptr(), place) }).map(|raw| Self { raw })
    }

    /// A connection of its own to the same store: while one waits, the other is free.
    pub fn reconnect(&self) -> Result<Self> {
        // SAFETY: as above.
        made(|place| unsafe { shoal_store_clone(self.raw, place) }).map(|raw| Self { raw })
    }

    /// Sets a value.
    pub fn set(&self, key: &str, value: &[u8]) -> Result<()> {
        let key = text(key)?;
        // SAFETY: key and value live through the call.
        check(unsafe { shoal_store_set(self.raw, key.as_ptr(), value.as_ptr(), value.len()) })
    }

    /// The value of a key; waits until it has one.
    pub fn get(&self, key: &str) -> Result<Vec<u8>> {
        unsafe extern "C" fn take(context: *mut c_void, value: *const u8, length: usize) {
            // SAFETY: the context is the vector below, the value has `length` bytes.
            unsafe {
                let taken = &mut *context.cast::<Vec<u8>>();
                if length > 0 {
                    taken.extend_from_slice(std::slice::from_raw_parts(value, length));
                }
            }
        }
        let key = text(key)?;
        let mut value: Vec<u8> = Vec::new();
        // SAFETY: the vector outlives the call, which hands it to `take` alone.
        check(unsafe { shoal_store_get(self.raw, key.as_ptr(), take, (&raw mut value).cast()) })?;
        Ok(value)
    }

    /// Whether a key has a value.
    pub fn has(&self, key: &str) -> Result<bool> {
        let key = text(key)?;
        let mut found = false;
        // SAFETY: the place is valid for a truth value.
        check(unsafe { shoal_store_has(self.raw, key.as_ptr(), &raw mut found) })?;
        Ok(found)
    }

    /// Adds to a number, which is 0 at first; gives what it comes to.
    pub fn add(&self, key: &str, amount: i64) -> Result<i64> {
        let key = text(key)?;
        let mut sum = 0;
        // SAFETY: the place is valid for a number.
        check(unsafe { shoal_store_add(self.raw, key.as_ptr(), amount, &raw mut sum) })?;
        Ok(sum)
    }
}

impl Drop for Store {
    fn drop(&mut self) {
        // SAFETY: made by us, given up here.
        unsafe { shoal_store_free(self.raw) };
    }
}

/// How a group of ranks comes together.
#[derive(Clone, Debug)]
pub struct Joining {
    /// The number of this rank, from 0.
    pub rank: i32,
    /// How many ranks there are.
    pub size: i32,
    /// How long a call may take.
    pub timeout: Duration,
    /// The address of this machine by which the others reach it; none for gloo's own choice (`GLOO_SOCKET_IFNAME`).
    pub host: Option<String>,
    /// Who makes the backend for CUDA devices, if there are any.
    pub cuda: Option<BackendMaker>,
}

/// Ranks that compute together: over gloo where tensors lie on the host, over NCCL where they lie on a GPU.
#[derive(Debug)]
pub struct Group {
    raw: *mut GroupBox,
    size: i64,
}

// SAFETY: process groups may be used from any thread.
unsafe impl Send for Group {}
// SAFETY: as above; the order of calls is up to the caller.
unsafe impl Sync for Group {}

impl Group {
    /// Meets all other ranks by way of `store`.
    pub fn join(store: &Store, joining: &Joining) -> Result<Self> {
        let host = joining.host.as_deref().map(text).transpose()?;
        let host = host.as_ref().map_or(std::ptr::null(), |host| host.as_ptr());
        let (rank, size, timeout) = (joining.rank, joining.size, millis(joining.timeout));
        // SAFETY: store and text live through the call; the maker is one of ours.
        let raw = made(|place| unsafe { shoal_group_new(store.raw, rank, size, timeout, host, joining.cuda, place) })?;
        Ok(Self { raw, size: i64::from(size) })
    }

    /// Reduces `tensor`, of the same shape on all ranks, in place.
    pub fn all_reduce(&self, tensor: &Tensor, reduction: Reduction) -> Result<()> {
        // SAFETY: tch's C tensors are `at::Tensor`s, which the call borrows.
        check(unsafe { shoal_all_reduce(self.raw, raw(tensor), reduction as i32) })
    }

    /// Overwrites `tensor` with that of the rank `root`.
    pub fn broadcast(&self, tensor: &Tensor, root: i32) -> Result<()> {
        // SAFETY: as above.
        check(unsafe { shoal_broadcast(self.raw, raw(tensor), root) })
    }

    /// The tensors of all ranks, of one shape, `[ranks, ...]`.
    pub fn all_gather(&self, part: &Tensor) -> Result<Tensor> {
        let part = part.f_contiguous()?;
        let mut shape = part.size();
        shape.insert(0, self.size);
        let all = Tensor::f_empty(shape.as_slice(), (part.kind(), part.device()))?;
        // c10d wants one shape for all, longer by the first dimension.
        let flat = all.f_view([-1])?;
        // SAFETY: as above.
        check(unsafe { shoal_all_gather(self.raw, raw(&flat), raw(&part.f_view([-1])?)) })?;
        Ok(all)
    }

    /// Sends the first `sends[0]` rows to rank 0, the next `sends[1]` to rank 1, and so on; gives the rows that came,
    /// `takes[r]` from each rank `r`.
    pub fn all_to_all(&self, rows: &Tensor, sends: &[i64], takes: &[i64]) -> Result<Tensor> {
        let mut shape = rows.size();
        let fits = sends.len() as i64 == self.size && takes.len() as i64 == self.size;
        if !fits || shape.first() != Some(&sends.iter().sum()) {
            return Err(Error::device(format!("{:?} rows for {sends:?}, from {takes:?}", shape.first())));
        }
        shape[0] = takes.iter().sum();
        let rows = rows.f_contiguous()?;
        let taken = Tensor::f_empty(shape.as_slice(), (rows.kind(), rows.device()))?;
        // SAFETY: as above; both lists have a number for each rank.
        check(unsafe { shoal_all_to_all(self.raw, raw(&taken), raw(&rows), takes.as_ptr(), sends.as_ptr()) })?;
        Ok(taken)
    }

    /// The sum of all ranks' tensors, through which gradients flow: the backward pass of every rank must come through here too.
    pub fn sum_with_gradient(&self, part: &Tensor) -> Result<Tensor> {
        // SAFETY: as above; what comes back is a tensor of ours.
        let sum = made(|place: *mut *mut c_void| unsafe { shoal_sum_over_ranks(self.raw, raw(part), place) })?;
        // SAFETY: a fresh `at::Tensor`, owned by nobody else.
        Ok(unsafe { Tensor::from_ptr(sum.cast()) })
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        // SAFETY: made by us, given up here.
        unsafe { shoal_group_free(self.raw) };
    }
}

/// Averages gradients over the ranks of a group in buckets, each as soon as the backward pass has made it: that of
/// DistributedDataParallel (Li et al., VLDB 2020, section 3.2).
#[derive(Debug)]
pub struct Reducer {
    raw: *mut ReducerBox,
}

// SAFETY: it belongs to one thread at a time.
unsafe impl Send for Reducer {}

impl Reducer {
    /// Of `weights`, leaves that need gradients and all take part in every backward pass.
    pub fn new(group: &Group, weights: &[Tensor], bucket_bytes: i64) -> Result<Self> {
        let handles: Vec<CTensor> = weights.iter().map(raw).collect();
        // SAFETY: as many handles as said; the call copies the tensors.
        let raw = made(|place| unsafe {
            shoal_reducer_new(group.raw, handles.as_ptr(), handles.len(), bucket_bytes, place)
        })?;
        Ok(Self { raw })
    }

    /// Says that the next backward pass is one whose gradients are to be averaged.
    pub fn prepare(&mut self) -> Result<()> {
        // SAFETY: alive.
        check(unsafe { shoal_reducer_prepare(self.raw) })
    }
}

impl Drop for Reducer {
    fn drop(&mut self) {
        // SAFETY: made by us, given up here.
        unsafe { shoal_reducer_free(self.raw) };
    }
}

fn raw(tensor: &Tensor) -> CTensor {
    tensor.as_ptr().cast_mut().cast()
}

fn made<T>(call: impl FnOnce(*mut *mut T) -> i32) -> Result<*mut T> {
    let mut place: *mut T = null_mut();
    check(call(&raw mut place))?;
    Ok(place)
}

fn check(code: i32) -> Result<()> {
    if code == 0 {
        return Ok(());
    }
    // SAFETY: a C string that lives until the next call of this thread.
    let words = unsafe { CStr::from_ptr(shoal_c10d_error()) }.to_string_lossy();
    tracing::debug!("c10d: {words}");
    Err(Error::device(format!("c10d: {}", first_line(&words))))
}

/// Whether an error is of a call in which another rank has broken off, in c10d's words or in those that libtorch passes on from a
/// backward pass.
pub fn is_of_another_rank(error: &Error) -> bool {
    const MARKS: [&str; 6] =
        ["c10d: ", "gloo", "NCCL", "Connection closed by peer", "Connection reset by peer", "Broken pipe"];
    let text = error.to_string();
    MARKS.iter().any(|mark| text.contains(mark))
}

/// The first line, without the place in gloo's sources that stands before it.
fn first_line(words: &str) -> &str {
    let line = words.lines().map(str::trim).find(|line| !line.is_empty()).unwrap_or("no reason given");
    match line.split_once("] ") {
        Some((place, rest)) if place.starts_with('[') => rest,
        _ => line,
    }
}

fn text(text: &str) -> Result<CString> {
    CString::new(text).map_err(|_| Error::usage(format!("{text:?} holds a NUL")))
}

fn millis(time: Duration) -> i64 {
    i64::try_from(time.as_millis()).unwrap_or(i64::MAX)
}
