//! CUDA, opened at run time: one binary serves machines with and without it.
//!
//! The program links only `libtorch_cpu`. [`open`] loads `libtorch_cuda.so` into the global scope, which registers CUDA
//! with libtorch; it must come before the first question about CUDA, since libtorch remembers the answer. What the
//! loader says when it cannot is kept for people to read.

use crate::error::{Error, Result};
use libloading::os::unix::{Library, RTLD_GLOBAL, RTLD_NOW, Symbol};
use std::ffi::c_void;
use std::sync::OnceLock;
use tch::Tensor;

static OPENED: OnceLock<Result<(), String>> = OnceLock::new();

/// Loads libtorch's CUDA half, once; the loader's own words where it cannot.
pub fn open() -> Result<(), String> {
    OPENED.get_or_init(load).clone()
}

fn load() -> Result<(), String> {
    let beside_libtorch = concat!(env!("SHOAL_LIBTORCH_LIB"), "/libtorch_cuda.so");
    let mut reason = String::new();
    // By name first: LD_LIBRARY_PATH and the rpath of the binary count then. The folder of the build is the last resort.
    for name in ["libtorch_cuda.so", beside_libtorch] {
        // SAFETY: libtorch_cuda's initialisers only register operators with libtorch_cpu, which is loaded already.
        match unsafe { Library::open(Some(name), RTLD_NOW | RTLD_GLOBAL) } {
            Ok(library) => {
                std::mem::forget(library); // its operators are registered for the life of the process
                return Ok(());
            }
            Err(error) => reason = loader_text(&error),
        }
    }
    Err(reason)
}

/// What the loader said: `error` itself only names the call.
fn loader_text(error: &libloading::Error) -> String {
    std::error::Error::source(error).map_or_else(|| error.to_string(), ToString::to_string)
}

/// Whether CUDA is open and has a device.
pub fn is_usable() -> bool {
    open().is_ok() && tch::Cuda::is_available()
}

/// Lets CUDA show this process one GPU alone, the `local_rank`-th of those that it would: everything here computes on device 0. Call it
/// before anything is asked of CUDA and before the first thread. A launcher that shows each process its own has done that already.
///
/// # Errors
/// `CUDA_VISIBLE_DEVICES` names fewer GPUs than there are processes.
pub fn claim(local_rank: usize) -> Result<()> {
    const VISIBLE: &str = "CUDA_VISIBLE_DEVICES";
    let own = match std::env::var(VISIBLE) {
        Err(_) => local_rank.to_string(),
        Ok(shown) => {
            let gpus: Vec<&str> = shown.split(',').map(str::trim).filter(|gpu| !gpu.is_empty()).collect();
            match (gpus.len(), gpus.get(local_rank)) {
                (0 | 1, _) => return Ok(()),
                (_, Some(own)) => (*own).to_owned(),
                (count, None) => {
                    let what = format!(
                        "{VISIBLE}={shown} shows {count} GPUs, and this is process {local_rank} here, counted from 0"
                    );
                    return Err(Error::usage(what).with_hint("start as many processes on a machine as it has GPUs"));
                }
            }
        }
    };
    // SAFETY: no other thread reads the environment yet.
    unsafe { std::env::set_var(VISIBLE, own) };
    Ok(())
}

type EventHandle = *mut c_void;
type StreamHandle = *mut c_void;
type GuardHandle = *mut c_void;

/// The few functions of the CUDA runtime and of libtorch that events and streams need.
struct Runtime {
    create: Symbol<unsafe extern "C" fn(*mut EventHandle, u32) -> i32>,
    record: Symbol<unsafe extern "C" fn(EventHandle, StreamHandle) -> i32>,
    query: Symbol<unsafe extern "C" fn(EventHandle) -> i32>,
    wait: Symbol<unsafe extern "C" fn(EventHandle) -> i32>,
    destroy: Symbol<unsafe extern "C" fn(EventHandle) -> i32>,
    current_stream: Symbol<unsafe extern "C" fn(i32, *mut StreamHandle) -> i32>,
    create_stream: Symbol<unsafe extern "C" fn(*mut StreamHandle, u32) -> i32>,
    hold_back: Symbol<unsafe extern "C" fn(StreamHandle, EventHandle, u32) -> i32>,
    enter_stream: Symbol<unsafe extern "C" fn(StreamHandle, i32, *mut GuardHandle) -> i32>,
    leave_stream: Symbol<unsafe extern "C" fn(GuardHandle) -> i32>,
    memory: Symbol<unsafe extern "C" fn(*mut usize, *mut usize) -> i32>,
}

static RUNTIME: OnceLock<Result<Runtime, String>> = OnceLock::new();

fn runtime() -> Result<&'static Runtime> {
    let found = RUNTIME.get_or_init(|| find_runtime().map_err(|error| error.to_string()));
    found.as_ref().map_err(|text| Error::device(format!("the CUDA runtime lacks a function: {text}")))
}

fn find_runtime() -> Result<Runtime, libloading::Error> {
    let process = Library::this();
    // SAFETY: the signatures are those of the CUDA runtime's and libtorch's public headers.
    unsafe {
        Ok(Runtime {
            create: process.get(b"cudaEventCreateWithFlags\0")?,
            record: process.get(b"cudaEventRecord\0")?,
            query: process.get(b"cudaEventQuery\0")?,
            wait: process.get(b"cudaEventSynchronize\0")?,
            destroy: process.get(b"cudaEventDestroy\0")?,
            current_stream: process.get(b"aoti_torch_get_current_cuda_stream\0")?,
            create_stream: process.get(b"cudaStreamCreateWithFlags\0")?,
            hold_back: process.get(b"cudaStreamWaitEvent\0")?,
            enter_stream: process.get(b"aoti_torch_create_cuda_stream_guard\0")?,
            leave_stream: process.get(b"aoti_torch_delete_cuda_stream_guard\0")?,
            memory: process.get(b"cudaMemGetInfo\0")?,
        })
    }
}

/// `cudaEventDisableTiming`: such events cost less.
const DISABLE_TIMING: u32 = 2;
/// `cudaStreamNonBlocking`: such a stream does not wait for the default one.
const NON_BLOCKING: u32 = 1;
/// `cudaErrorNotReady`.
const NOT_READY: i32 = 600;

/// A mark in the work queued on device 0's current stream: passed once everything queued before it is done.
#[derive(Debug)]
pub struct Event {
    handle: EventHandle,
}

// SAFETY: CUDA events may be used from any thread.
unsafe impl Send for Event {}

impl Event {
    /// Marks the current end of the queue.
    pub fn record() -> Result<Self> {
        Self::record_on(current_stream()?)
    }

    fn record_on(stream: StreamHandle) -> Result<Self> {
        let runtime = runtime()?;
        let mut event = Self { handle: std::ptr::null_mut() };
        // SAFETY: the place is valid for a handle.
        check(unsafe { (runtime.create)(&raw mut event.handle, DISABLE_TIMING) }, "event")?;
        // SAFETY: the event has just been made, the stream is alive.
        check(unsafe { (runtime.record)(event.handle, stream) }, "event record")?;
        Ok(event)
    }

    /// Holds back whatever is queued on the current stream from now on until the event has passed. Returns at once.
    pub fn hold_back_current(&self) -> Result<()> {
        // SAFETY: both handles are alive.
        check(unsafe { (runtime()?.hold_back)(current_stream()?, self.handle, 0) }, "stream wait")
    }

    /// Whether everything before it is done; does not wait.
    pub fn has_passed(&self) -> Result<bool> {
        // SAFETY: the handle lives as long as `self`.
        match unsafe { (runtime()?.query)(self.handle) } {
            NOT_READY => Ok(false),
            code => check(code, "event query").map(|()| true),
        }
    }

    /// Waits until everything before it is done.
    pub fn wait(&self) -> Result<()> {
        // SAFETY: the handle lives as long as `self`.
        check(unsafe { (runtime()?.wait)(self.handle) }, "event wait")
    }
}

impl Drop for Event {
    fn drop(&mut self) {
        if self.handle.is_null() {
            return;
        }
        if let Ok(runtime) = runtime() {
            // SAFETY: the handle was made by us and is given up here.
            unsafe { (runtime.destroy)(self.handle) };
        }
    }
}

fn current_stream() -> Result<StreamHandle> {
    let mut stream: StreamHandle = std::ptr::null_mut();
    // SAFETY: the place is valid for a handle.
    check(unsafe { (runtime()?.current_stream)(0, &raw mut stream) }, "current stream")?;
    Ok(stream)
}

/// The queue of work on device 0 beside libtorch's own, which neither waits for the other.
///
/// There is one, and it lives as long as the process: when pinned memory is freed, libtorch marks the streams on which it was
/// used, and a stream that is gone by then is undefined behaviour.
#[derive(Debug)]
pub struct SideStream {
    handle: StreamHandle,
}

// SAFETY: CUDA streams may be used from any thread, and from several at once.
unsafe impl Send for SideStream {}
// SAFETY: as above; the handle is never written.
unsafe impl Sync for SideStream {}

static SIDE_STREAM: OnceLock<Result<SideStream, String>> = OnceLock::new();

impl SideStream {
    /// The one of this process, made when it is first asked for.
    pub fn get() -> Result<&'static Self> {
        let made = SIDE_STREAM.get_or_init(|| Self::new().map_err(|error| error.to_string()));
        made.as_ref().map_err(|text| Error::device(text.clone()))
    }

    fn new() -> Result<Self> {
        let mut handle: StreamHandle = std::ptr::null_mut();
        // SAFETY: the place is valid for a handle.
        check(unsafe { (runtime()?.create_stream)(&raw mut handle, NON_BLOCKING) }, "stream")?;
        Ok(Self { handle })
    }

    /// Holds back whatever is queued here from now on until `event` has passed. Returns at once.
    pub fn wait_for(&self, event: &Event) -> Result<()> {
        // SAFETY: both handles are alive.
        check(unsafe { (runtime()?.hold_back)(self.handle, event.handle, 0) }, "stream wait")
    }

    /// Marks the current end of this queue.
    pub fn record(&self) -> Result<Event> {
        Event::record_on(self.handle)
    }

    /// Queues here, instead of on the current stream, what `work` asks of libtorch on this thread.
    pub fn run<T>(&self, work: impl FnOnce() -> Result<T>) -> Result<T> {
        let mut guard = StreamGuard { handle: std::ptr::null_mut() };
        // SAFETY: the stream is alive, the place is valid for a handle.
        check(unsafe { (runtime()?.enter_stream)(self.handle, 0, &raw mut guard.handle) }, "stream guard")?;
        work()
    }
}

/// While it lives, libtorch's current stream on this thread is another one.
struct StreamGuard {
    handle: GuardHandle,
}

impl Drop for StreamGuard {
    fn drop(&mut self) {
        if self.handle.is_null() {
            return;
        }
        if let Ok(runtime) = runtime() {
            // SAFETY: the guard was made by us on this thread and is given up here.
            unsafe { (runtime.leave_stream)(self.handle) };
        }
    }
}

/// Queues a copy of `from` into `to`, of the same shape, on the current stream. Does not wait where `from` is pinned:
/// neither may be touched until an event behind the copy has passed.
pub fn copy_without_waiting(from: &Tensor, to: &Tensor) -> Result<()> {
    // SAFETY: tch's C tensors are `at::Tensor`s, which the call only borrows.
    let code = unsafe { aoti_torch_copy_(to.as_ptr().cast(), from.as_ptr().cast(), 1) };
    check(code, "copy")
}

/// Bytes of device 0's memory: free, and in all. Any thread may ask.
pub fn memory() -> Result<(usize, usize)> {
    let (mut free, mut all) = (0, 0);
    // SAFETY: both places are valid for a number.
    check(unsafe { (runtime()?.memory)(&raw mut free, &raw mut all) }, "memory question")?;
    Ok((free, all))
}

unsafe extern "C" {
    fn aoti_torch_copy_(to: *const c_void, from: *const c_void, non_blocking: i32) -> i32;
}

fn check(code: i32, what: &str) -> Result<()> {
    if code != 0 {
        return Err(Error::device(format!("CUDA {what} failed with code {code}")));
    }
    Ok(())
}
