//! How large the disk is that a path lies on.

use std::path::Path;

/// Bytes of the file system that `path` lies on, in use or not. None where there is no such path,
/// or the system does not say it in a way that is known here.
pub fn disk_bytes(path: &Path) -> Option<u64> {
    #[cfg(all(target_os = "linux", target_pointer_width = "64"))]
    {
        use std::os::unix::ffi::OsStrExt;
        let path = std::ffi::CString::new(path.as_os_str().as_bytes()).ok()?;
        // SAFETY: the path is a C string that lives through the call, which writes to nothing but
        // the structure; that holds plain numbers, which may all be zero.
        let (failed, stat) = unsafe {
            let mut stat: libc::statvfs = std::mem::zeroed();
            (libc::statvfs(path.as_ptr(), &mut stat) != 0, stat)
        };
        if failed { None } else { stat.f_blocks.checked_mul(stat.f_frsize) }
    }
    #[cfg(not(all(target_os = "linux", target_pointer_width = "64")))]
    {
        let _ = path;
        None
    }
}

#[cfg(all(test, target_os = "linux", target_pointer_width = "64"))]
mod tests {
    use super::*;

    #[test]
    fn a_disk_is_larger_than_a_file_on_it_and_what_is_not_there_is_on_none() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("x");
        std::fs::write(&file, [1; 10_000]).unwrap();
        let bytes = disk_bytes(dir.path()).unwrap();
        assert!(bytes > 10_000, "{bytes}");
        assert_eq!(disk_bytes(&file), Some(bytes));
        assert_eq!(disk_bytes(&dir.path().join("absent")), None);
        assert_eq!(disk_bytes(Path::new("a\0b")), None);
    }
}
