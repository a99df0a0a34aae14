//! A writer that is killed in the middle of writes leaves whole objects only.

use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};

use bytes::Bytes;
use pitr_storage::open_url;

const ROOT: &str = "PITR_STORAGE_CRASH_TEST_ROOT";
const SIZE: usize = 1 << 20;

fn object(number: u32) -> Bytes {
    Bytes::from(number.to_le_bytes().repeat(SIZE / 4))
}

/// Not a test of its own: the process that the test below kills. It says which objects it was
/// told are durable.
#[tokio::test]
#[ignore = "only as a child of the crash test"]
async fn child_that_writes_until_it_is_killed() {
    let Ok(root) = std::env::var(ROOT) else {
        return;
    };
    let storage = open_url(&root).unwrap();
    for number in 0u32.. {
        storage
            .put(
                &format!("v1/{}/{number}.log", number / 4),
                object(number).into(),
            )
            .await
            .unwrap();
        storage
            .put("v1/global_checkpoint/1.ts", object(number).into())
            .await
            .unwrap();
        println!("\ndurable {number}");
    }
}

#[tokio::test]
async fn a_killed_writer_leaves_whole_objects_and_each_acknowledged_one() {
    for kill_after in [1, 4] {
        let dir = tempfile::tempdir().unwrap();
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--ignored", "--exact", "--nocapture"])
            .arg("crash::child_that_writes_until_it_is_killed")
            .env(ROOT, dir.path())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap())
            .lines()
            .map(Result::unwrap);
        let told = |line: &String| line.starts_with("durable ");
        let mut last = lines
            .by_ref()
            .filter(|line| told(line))
            .nth(kill_after)
            .unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
        if let Some(later) = lines.filter(|line| line.starts_with("durable ")).last() {
            last = later;
        }
        let acknowledged: u32 = last.trim_start_matches("durable ").parse().unwrap();

        let storage = open_url(dir.path().to_str().unwrap()).unwrap();
        let listed = storage.list("v1/").await.unwrap();
        for info in &listed {
            let data = storage.get(&info.path).await.unwrap();
            let number = u32::from_le_bytes(data[..4].try_into().unwrap());
            assert_eq!(data, object(number), "{} is not whole", info.path);
        }
        for number in 0..=acknowledged {
            let path = format!("v1/{}/{number}.log", number / 4);
            assert_eq!(storage.get(&path).await.unwrap(), object(number));
        }
        let logs = listed
            .iter()
            .filter(|info| info.path.ends_with(".log"))
            .count();
        assert!(
            logs <= acknowledged as usize + 3,
            "{logs} logs, {acknowledged} acknowledged"
        );
    }
}
