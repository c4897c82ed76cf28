//! DPDK itself under the safe handles: one EAL without hugepages, virtual devices, real mbufs.

use std::path::Path;
use std::sync::{Arc, LazyLock, mpsc};

use flowgate::dpdk::eal::{Affinity, Eal, EalConfig, Hugepages};
use flowgate::dpdk::error::{Errno, Error};
use flowgate::dpdk::pool::Pool;
use flowgate::dpdk::port::{Place, Port, PortConfig};
use flowgate::io::Io;
use flowgate::io::dpdk::DpdkIo;
use flowgate::packet::{BATCH, Frame};
use flowgate::wire::ethernet::Rewrite;
use pcap_file::pcap::{PcapPacket, PcapReader, PcapWriter};

/// The CPUs before the EAL, and the EAL: two workers, on two CPUs if there are two.
static STARTED: LazyLock<(Vec<u16>, &'static Eal)> = LazyLock::new(|| {
    let before: Vec<u16> = Affinity::current().cpus().collect();
    let config = EalConfig {
        hugepages: Hugepages::Off,
        memory: 256,
        spare: 0,
        cores: before.iter().copied().cycle().take(2).collect(),
        oversubscribe: true,
        prefix: format!("flowgate-test-{}", std::process::id()),
        pci: Vec::new(),
        secondary: false,
        telemetry: false,
        verbose: false,
        log_level: Vec::new(),
        extra: Vec::new(),
    };
    let eal = Eal::start(&config).expect("an EAL without hugepages starts anywhere");
    assert_eq!(Affinity::current().cpus().collect::<Vec<_>>(), before, "the caller keeps its CPUs");
    (before, eal)
});

fn eal() -> &'static Eal {
    STARTED.1
}

fn pool(name: &str) -> Arc<Pool> {
    Arc::new(Pool::new(eal(), name, 0, 4096, 1500).expect("memory for a pool"))
}

fn config() -> PortConfig {
    PortConfig {
        rx_queues: 1,
        tx_queues: 1,
        rx_descriptors: 256,
        tx_descriptors: 256,
        mtu: 1500,
        macs: Vec::new(),
        promiscuous: true,
        checksum: true,
        rss: true,
        vlan_strip: false,
        one_pool: false,
    }
}

/// Started ports and one worker's Io over their first queues.
fn io(devices: &[&str], pool: &Arc<Pool>) -> (Vec<Port>, DpdkIo) {
    let (mut ports, mut queues) = (Vec::new(), Vec::new());
    for device in devices {
        let mut port = Port::probe(eal(), device).expect("a device");
        port.configure(&config(), pool).expect("configured");
        let (mut rx, mut tx) = port.start().expect("started");
        queues.push((rx.pop(), tx.pop()));
        ports.push(port);
    }
    (ports, DpdkIo::new(queues, pool.clone()))
}

fn frame(io: &mut DpdkIo, bytes: &[u8]) -> Frame {
    let mut frame = io.create().expect("a buffer");
    assert!(frame.is_empty() && frame.headroom() == 128 && frame.set_len(bytes.len()));
    frame.bytes_mut().copy_from_slice(bytes);
    frame
}

fn empty() -> [Frame; BATCH] {
    [const { Frame::EMPTY }; BATCH]
}

#[test]
fn frames_keep_their_bytes_through_a_ring() {
    let pool = pool("ring");
    // A net_ring port receives what it sends.
    let (ports, mut io) = io(&["net_ring0", "net_ring1"], &pool);
    let texts: Vec<Vec<u8>> = (0..40u8).map(|n| vec![n; 60 + usize::from(n) * 30]).collect();
    let mut frames = empty();
    for (slot, text) in frames.iter_mut().zip(&texts) {
        *slot = frame(&mut io, text);
    }
    assert_eq!(pool.in_use(), 40);
    assert_eq!(io.tx(0, &mut frames[..40]), 40);
    assert!(frames[..40].iter().all(|frame| frame.is_empty_slot() && frame.bytes().is_empty()));

    assert_eq!(io.rx(0, 16, &mut frames), 16, "no more than asked for");
    for (frame, text) in frames.iter_mut().zip(&texts[..16]) {
        assert_eq!(frame.bytes(), text);
        assert_eq!((frame.headroom(), frame.flags), (128, 0));
        // Four bytes more in front, two less behind: both must be seen by who receives it.
        assert!(frame.grow_front(4));
        frame.bytes_mut()[..4].copy_from_slice(b"tag!");
        let shorter = frame.len() - 2;
        assert!(frame.set_len(shorter));
    }
    assert_eq!(io.tx(1, &mut frames[..16]), 16);
    assert_eq!(io.relay(1, 0, 64, &Rewrite::NOTHING), (16, 16), "unread from one port to the other");
    assert_eq!(io.relay(1, 0, 64, &Rewrite::NOTHING), (0, 0));

    assert_eq!(io.rx(0, 64, &mut frames), 40);
    for (frame, text) in frames.iter().zip(texts[16..].iter()) {
        assert_eq!(frame.bytes(), text);
    }
    for (frame, text) in frames[24..40].iter().zip(&texts) {
        assert_eq!((&frame.bytes()[..4], &frame.bytes()[4..]), (&b"tag!"[..], &text[..text.len() - 2]));
    }
    io.free(&mut frames[..40]);
    assert!(frames.iter().all(Frame::is_empty_slot));
    assert_eq!(
        (io.relay(0, 0, 64, &Rewrite::NOTHING), io.rx(7, 64, &mut frames), io.tx(7, &mut frames[..0])),
        ((0, 0), 0, 0)
    );
    assert!(io.receives(1) && io.transmits(0) && !io.receives(2));
    drop((io, ports));
    assert_eq!(pool.in_use(), 0);
}

#[test]
fn a_full_ring_leaves_the_rest_with_the_sender() {
    let pool = pool("full");
    let (ports, mut io) = io(&["net_ring2"], &pool);
    let (mut sent, mut kept) = (0, 0);
    while kept == 0 {
        let mut frames = empty();
        frames.iter_mut().for_each(|slot| *slot = frame(&mut io, &[1; 60]));
        let taken = io.tx(0, &mut frames);
        assert!(frames[..taken].iter().all(Frame::is_empty_slot));
        assert!(frames[taken..].iter().all(|frame| frame.len() == 60));
        kept = BATCH - taken;
        sent += taken;
        io.free(&mut frames[taken..]);
    }
    assert_eq!(pool.in_use(), sent);
    let mut frames = empty();
    let mut received = 0;
    while let n @ 1.. = io.rx(0, BATCH, &mut frames) {
        received += n;
        io.free(&mut frames[..n]);
    }
    assert_eq!(received, sent);
    drop((io, ports));
    assert_eq!(pool.in_use(), 0);
}

fn write_pcap(path: &Path, frames: &[Vec<u8>]) {
    let mut writer = PcapWriter::new(std::fs::File::create(path).expect("a file")).expect("a capture");
    for bytes in frames {
        let packet = PcapPacket::new(std::time::Duration::ZERO, bytes.len() as u32, bytes).expect("a packet");
        writer.write_packet(&packet).expect("written");
    }
}

fn read_pcap(path: &Path) -> Vec<Vec<u8>> {
    let mut reader = PcapReader::new(std::fs::File::open(path).expect("a file")).expect("a capture");
    let mut frames = Vec::new();
    while let Some(packet) = reader.next_packet() {
        frames.push(packet.expect("a packet").data().to_vec());
    }
    frames
}

#[test]
fn captures_go_in_and_come_out() {
    let pool = pool("pcap");
    let directory = tempfile::tempdir().expect("a directory");
    let (from, to) = (directory.path().join("in.pcap"), directory.path().join("out.pcap"));
    let texts: Vec<Vec<u8>> = (0..100u8).map(|n| vec![n; 60 + usize::from(n) * 14]).collect();
    write_pcap(&from, &texts);
    let device = format!("net_pcap0,rx_pcap={},tx_pcap={}", from.display(), to.display());
    let (ports, mut io) = io(&[&device], &pool);
    // Half of them read, half of them unread.
    let mut frames = empty();
    let n = io.rx(0, 50, &mut frames);
    assert_eq!((n, frames[49].bytes()), (50, &texts[49][..]));
    assert_eq!(io.tx(0, &mut frames[..n]), n);
    assert_eq!(io.relay(0, 0, 64, &Rewrite::NOTHING), (50, 50));
    assert_eq!(io.rx(0, 64, &mut frames), 0);
    let stats = ports[0].stats();
    let bytes: u64 = texts.iter().map(|text| text.len() as u64).sum();
    assert_eq!((stats.rx_packets, stats.tx_packets, stats.tx_bytes), (100, 100, bytes));
    drop((io, ports));
    assert_eq!(read_pcap(&to), texts);
    assert_eq!(pool.in_use(), 0);
}

#[test]
fn a_port_says_what_it_is() {
    let pool = pool("null");
    let mut port = Port::probe(eal(), "net_null0,size=64").expect("a device");
    assert_eq!((port.abilities().driver.as_str(), port.setup()), ("net_null", None));
    let setup = port.configure(&config(), &pool).expect("configured");
    assert_eq!((setup.offloads.checksum, setup.offloads.rss), (Place::Software, Place::Off));
    assert_eq!((setup.mtu, setup.rx_queues), (1500, 1));
    let two = PortConfig { rx_queues: 2, tx_queues: 2, checksum: false, ..config() };
    assert_eq!(port.configure(&two, &pool).expect("again").offloads.checksum, Place::Off);
    let (rx, tx) = port.start().expect("started");
    assert_eq!((rx.len(), tx.len()), (2, 2));
    assert!(port.link().up && port.start().is_err());
    assert_ne!(port.mac(), [0; 6]);
    assert_eq!(port.stop(), Err(Error::QueuesInUse { device: "net_null0,size=64".into() }));
    let mut io = DpdkIo::new(rx.into_iter().map(Some).zip(tx.into_iter().map(Some)).collect(), pool.clone());
    let mut frames = empty();
    assert_eq!(io.rx(0, BATCH, &mut frames), BATCH);
    assert!(frames.iter().all(|frame| frame.len() == 64));
    assert_eq!(io.tx(1, &mut frames), BATCH);
    drop(io);
    assert_eq!(port.stop(), Ok(()));
    drop(port);
    assert_eq!(pool.in_use(), 0);
    // A device is free again once its port is gone.
    drop(Port::probe(eal(), "net_null0").expect("free again"));
}

#[test]
fn jumbo_frames_fit_into_one_buffer() {
    let pool = Arc::new(Pool::new(eal(), "jumbo", 0, 64, 9000).expect("memory"));
    let mut port = Port::probe(eal(), "net_ring3").expect("a device");
    assert_eq!(port.configure(&PortConfig { mtu: 9000, ..config() }, &pool).expect("configured").mtu, 9000);
    let (mut rx, mut tx) = port.start().expect("started");
    let mut io = DpdkIo::new(vec![(rx.pop(), tx.pop())], pool.clone());
    let mut frames = empty();
    frames[0] = frame(&mut io, &[9; 9014]);
    assert_eq!((io.tx(0, &mut frames[..1]), io.rx(0, 8, &mut frames), frames[0].bytes()), (1, 1, &[9; 9014][..]));
    io.free(&mut frames[..1]);
    let taken: Vec<Frame> = std::iter::from_fn(|| io.create()).collect();
    assert_eq!((taken.len(), pool.in_use()), (64, 64), "every buffer, and no more");
    for mut frame in taken {
        io.free(std::slice::from_mut(&mut frame));
    }
    drop((io, rx, tx, port));
    assert_eq!(pool.in_use(), 0);
}

#[test]
fn a_pool_keeps_its_memory_while_a_buffer_is_out() {
    let pool = pool("leak");
    let mut frame = pool.take().expect("a buffer");
    assert!(frame.set_len(60));
    drop(pool);
    frame.bytes_mut().fill(1);
    assert_eq!(frame.bytes(), [1; 60]);
    // Its name stays taken, which shows that it is still there.
    assert!(matches!(Pool::new(eal(), "leak", 0, 64, 1500), Err(Error::Pool { errno: Errno(libc::EEXIST), .. })));
}

#[test]
fn what_does_not_exist_is_named() {
    for device in ["0000:ff:1f.7", "net_nosuch0", "no vdev at all"] {
        let error = Port::probe(eal(), device).unwrap_err();
        assert!(matches!(&error, Error::NoDevice { device: named, .. } if named == device), "{error:?}");
        assert!(error.to_string().contains(&format!("no device `{device}`")), "{error}");
    }
    let error = Port::probe(eal(), "net_pcap7,rx_pcap=/nonexistent/a.pcap").unwrap_err();
    assert!(error.to_string().contains("/nonexistent/a.pcap"), "DPDK's own words are missing: {error}");
    // A refusal leaves nothing taken.
    assert!(!matches!(Port::probe(eal(), "net_nosuch0"), Err(Error::DeviceTaken { .. })));
}

#[test]
fn what_a_device_cannot_do_is_refused_with_its_limits() {
    let pool = pool("limits");
    let mut port = Port::probe(eal(), "net_null9").expect("a device");
    assert!(matches!(Port::probe(eal(), "net_null9,size=128"), Err(Error::DeviceTaken { .. })));
    assert!(port.start().is_err(), "not configured yet");
    let max = port.abilities().rx_queues;
    let many = PortConfig { rx_queues: max + 1, ..config() };
    let refused = Error::Queues { device: "net_null9".into(), direction: "receive", asked: max + 1, max };
    assert_eq!(port.configure(&many, &pool), Err(refused));
    // The pool's buffers bound the MTU too.
    let error = port.configure(&PortConfig { mtu: 9000, ..config() }, &pool).unwrap_err();
    assert!(matches!(error, Error::Mtu { asked: 9000, max: 1500..9000, .. }), "{error:?}");
    assert!(matches!(port.configure(&PortConfig { mtu: 1, ..config() }, &pool), Err(Error::Mtu { asked: 1, .. })));
    let error = Pool::new(eal(), "greedy", 0, 10_000_000, 1500).unwrap_err();
    assert!(matches!(error, Error::Pool { megabytes: 20_000.., .. }), "{error:?}");
}

#[test]
fn workers_run_and_panics_come_back() {
    let (before, eal) = &*STARTED;
    let (go, wait) = mpsc::channel::<()>();
    let cpu = eal.workers()[0];
    let first = eal.launch(0, move || {
        wait.recv().expect("the word");
        Affinity::current().cpus().collect::<Vec<_>>()
    });
    let first = first.expect("launched");
    let second = eal.launch(1, || -> u32 { panic!("worker {} gives up", 1) }).expect("launched beside it");
    assert_eq!(second.join(), Err("worker 1 gives up".into()));
    assert!(!first.is_finished());
    assert!(matches!(eal.launch(0, || ()), Err(Error::Lcore { worker: 0, .. })), "at work");
    go.send(()).expect("heard");
    assert_eq!(first.join(), Ok(vec![cpu]), "pinned to its CPU");
    assert_eq!(eal.launch(1, || 42).expect("free again").join(), Ok(42));
    assert!(matches!(eal.launch(2, || ()), Err(Error::Lcore { worker: 2, .. })));
    assert!(before.contains(&cpu));
}

#[test]
fn the_eal_starts_once() {
    let eal = eal();
    assert!(std::ptr::eq(Eal::offline(16).expect("the one there is"), eal));
    let again = EalConfig {
        hugepages: Hugepages::Require,
        memory: 1,
        spare: 0,
        cores: vec![],
        oversubscribe: false,
        prefix: "flowgate-again".into(),
        pci: vec![],
        secondary: false,
        telemetry: false,
        verbose: false,
        log_level: vec![],
        extra: vec![],
    };
    assert_eq!(Eal::start(&again).unwrap_err(), Error::Started);
    assert!(eal.arguments().iter().any(|argument| argument == "--no-huge") && !eal.hugepages());
}
