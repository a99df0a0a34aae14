//! A real MinIO of a test's own, with one bucket, on a free loopback port and in a temporary folder.
//! It is killed when the test ends, also by a panic.
#![allow(dead_code, reason = "each test binary uses its part")]

#[path = "program.rs"]
mod program;

use std::fs::File;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use tempfile::TempDir;

const PATIENCE: Duration = Duration::from_secs(60);

/// The one bucket that there is.
pub const BUCKET: &str = "logs";
/// Both halves of the only credential.
pub const KEY: &str = "miniotestkey";

/// See the module.
pub struct Minio {
    child: Child,
    port: u16,
    _dir: TempDir,
}

impl Minio {
    /// Starts it and waits until it serves; `None` without the program.
    pub fn start() -> Option<Minio> {
        let program = program::program("minio")?;
        let dir = tempfile::tempdir().unwrap();
        let port = {
            let free = TcpListener::bind("127.0.0.1:0").unwrap();
            free.local_addr().unwrap().port()
        };
        // MinIO takes a folder of its drive for a bucket.
        let drive = dir.path().join("drive");
        std::fs::create_dir_all(drive.join(BUCKET)).unwrap();
        let log = File::create(dir.path().join("minio.log")).unwrap();
        let child = Command::new(program)
            .args(["server", "--address", &format!("127.0.0.1:{port}")])
            .arg(&drive)
            .env("MINIO_ROOT_USER", KEY)
            .env("MINIO_ROOT_PASSWORD", KEY)
            .envs([
                ("MINIO_BROWSER", "off"),
                ("MINIO_UPDATE", "off"),
                ("MINIO_CI_CD", "1"),
            ])
            .stdout(log.try_clone().unwrap())
            .stderr(Stdio::from(log))
            .spawn()
            .unwrap();
        let minio = Minio {
            child,
            port,
            _dir: dir,
        };
        let end = Instant::now() + PATIENCE;
        while !minio.is_alive() {
            assert!(Instant::now() < end, "MinIO does not serve");
            std::thread::sleep(Duration::from_millis(50));
        }
        Some(minio)
    }

    /// URL of a place in the bucket, with the credentials in it.
    pub fn url(&self, prefix: &str) -> String {
        format!(
            "s3://{BUCKET}/{prefix}?endpoint=http://127.0.0.1:{}&region=us-east-1&access-key={KEY}&secret-access-key={KEY}",
            self.port
        )
    }

    fn is_alive(&self) -> bool {
        let Ok(mut stream) = TcpStream::connect(("127.0.0.1", self.port)) else {
            return false;
        };
        let mut answer = String::new();
        let asked = stream.write_all(b"GET /minio/health/live HTTP/1.0\r\n\r\n");
        asked.is_ok()
            && stream.read_to_string(&mut answer).is_ok()
            && answer.split(' ').nth(1) == Some("200")
    }
}

impl Drop for Minio {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
