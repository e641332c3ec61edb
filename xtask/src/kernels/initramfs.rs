//! The guest's root file system: an uncompressed cpio archive of the kind "newc" (the kernel's
//! Documentation/driver-api/early-userspace/buffer-format.rst), written by hand so that no cpio(1) and no root is needed.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

/// An archive under construction.
pub(crate) struct Archive<W: Write> {
    to: W,
    written: usize,
    inode: u32,
    /// Directories and libraries that are in it already.
    known: BTreeSet<PathBuf>,
}

const DIRECTORY: u32 = 0o040_755;
const EXECUTABLE: u32 = 0o100_755;
const CHARACTER_DEVICE: u32 = 0o020_600;

impl Archive<BufWriter<File>> {
    pub(crate) fn create(path: &Path) -> Result<Self> {
        let file = File::create(path).with_context(|| format!("writing {}", path.display()))?;
        Ok(Self::new(BufWriter::new(file)))
    }
}

impl<W: Write> Archive<W> {
    fn new(to: W) -> Self {
        Self {
            to,
            written: 0,
            inode: 0,
            known: BTreeSet::new(),
        }
    }

    /// Adds a directory and those above it.
    pub(crate) fn directory(&mut self, path: &str) -> io::Result<()> {
        let path = Path::new(path.trim_start_matches('/'));
        let mut above: Vec<&Path> = path
            .ancestors()
            .filter(|path| !path.as_os_str().is_empty())
            .collect();
        above.reverse();
        for directory in above {
            if self.known.insert(directory.to_owned()) {
                self.entry(&directory.to_string_lossy(), DIRECTORY, (0, 0), &[])?;
            }
        }
        Ok(())
    }

    /// Adds an executable file and the directories above it.
    pub(crate) fn file(&mut self, path: &str, bytes: &[u8]) -> io::Result<()> {
        if let Some((directory, _)) = path.rsplit_once('/') {
            self.directory(directory)?;
        }
        self.entry(path.trim_start_matches('/'), EXECUTABLE, (0, 0), bytes)
    }

    /// /dev/console, which the kernel opens for init before anything is mounted.
    pub(crate) fn console(&mut self) -> io::Result<()> {
        self.directory("/dev")?;
        self.entry("dev/console", CHARACTER_DEVICE, (5, 1), &[])
    }

    /// Adds a program of this machine as `to`, and the shared libraries that it needs, each at its own place.
    pub(crate) fn program(&mut self, program: &Path, to: &str) -> Result<()> {
        for library in libraries(program)? {
            // Several programs share them.
            if self.known.insert(library.clone()) {
                self.file(&library.to_string_lossy(), &fs::read(&library)?)?;
            }
        }
        Ok(self.file(to, &fs::read(program)?)?)
    }

    pub(crate) fn finish(mut self) -> io::Result<()> {
        self.entry("TRAILER!!!", 0, (0, 0), &[])?;
        self.to.flush()
    }

    fn entry(&mut self, name: &str, mode: u32, device: (u32, u32), bytes: &[u8]) -> io::Result<()> {
        self.inode += 1;
        let fields = [
            self.inode,
            mode,
            0, // uid
            0, // gid
            1, // nlink
            0, // mtime
            u32::try_from(bytes.len()).map_err(io::Error::other)?,
            0, // device of the file
            0,
            device.0,
            device.1,
            u32::try_from(name.len() + 1).map_err(io::Error::other)?,
            0, // checksum, of another kind of archive
        ];
        let mut header = String::from("070701");
        for field in fields {
            header += &format!("{field:08x}");
        }
        self.write(header.as_bytes())?;
        self.write(name.as_bytes())?;
        self.write(&[0])?;
        self.align()?;
        self.write(bytes)?;
        self.align()
    }

    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.written += bytes.len();
        self.to.write_all(bytes)
    }

    /// Headers and contents begin at multiples of four.
    fn align(&mut self) -> io::Result<()> {
        let rest = self.written.next_multiple_of(4) - self.written;
        self.write(&[0; 4][..rest])
    }
}

/// Shared libraries with their dynamic linker, as ldd(1) prints them.
fn libraries(program: &Path) -> Result<Vec<PathBuf>> {
    let output = Command::new("ldd").arg(program).output().context("running ldd")?;
    ensure!(output.status.success(), "ldd {} failed", program.display());
    Ok(parse_libraries(&String::from_utf8_lossy(&output.stdout)))
}

/// `libc.so.6 => /lib/x86_64-linux-gnu/libc.so.6 (0x...)`, or the linker's path alone.
fn parse_libraries(ldd: &str) -> Vec<PathBuf> {
    ldd.lines()
        .filter_map(|line| {
            line.split_whitespace()
                .find(|word| word.starts_with('/'))
                .map(PathBuf::from)
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_archive_is_what_the_format_says() {
        let mut bytes = Vec::new();
        let mut archive = Archive::new(&mut bytes);
        archive.file("/bin/a", b"12345").unwrap();
        archive.file("/bin/b", b"").unwrap();
        archive.finish().unwrap();
        assert_eq!(bytes.len() % 4, 0);
        // Header of "bin", 110 bytes, name of four with its NUL, two to align; then the header of "bin/a".
        assert_eq!(&bytes[..14], b"07070100000001");
        assert_eq!(&bytes[110..116], b"bin\0\0\0".as_slice().split_at(6).0);
        assert_eq!(&bytes[116..122], b"070701");
        let text = String::from_utf8_lossy(&bytes).into_owned();
        assert_eq!(text.matches("070701").count(), 4, "bin, bin/a, bin/b and the end");
        let content = text.find("12345").unwrap();
        assert_eq!(content % 4, 0);
        assert_eq!(&bytes[content + 5..content + 8], [0, 0, 0]);
    }

    #[test]
    fn libraries_are_the_paths_that_ldd_prints() {
        let ldd = "\tlinux-vdso.so.1 (0x00007ffd)\n\tlibc.so.6 => /lib/x86_64-linux-gnu/libc.so.6 (0x00007f)\n\t/lib64/ld-linux-x86-64.so.2 (0x00007f)\n";
        assert_eq!(
            parse_libraries(ldd),
            [
                PathBuf::from("/lib/x86_64-linux-gnu/libc.so.6"),
                PathBuf::from("/lib64/ld-linux-x86-64.so.2")
            ]
        );
    }
}
