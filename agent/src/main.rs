//! The command `agent`.
use agent::*;
fn main() {
    let pids: Vec<u32> = std::env::args().skip(1).map(|a| a.parse().unwrap()).collect();
    let rt = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    rt.block_on(async {
        let t0 = std::time::Instant::now();
        let kernel = preflight::Kernel::probe().unwrap();
        println!("preflight {:?}", t0.elapsed());
        let loaded = session::Loaded::load(kernel, &session::Needs { stacks: true, ..Default::default() }).unwrap();
        println!("load {:?}", t0.elapsed());
        let procs = pids.iter().map(|&p| process::Process::open(p).unwrap()).collect();
        let mut s = loaded.follow(procs, true).unwrap();
        println!("follow {:?}", t0.elapsed());
        s.tables_ready().await;
        println!("tables {:?}", t0.elapsed());
        let r = probe::cpu::attach(&mut s, 199);
        let clock = match r { Ok(c) => c, Err(e) => { println!("{e:?}"); return; } };
        println!("attach {:?} {clock:?}", t0.elapsed());
        let mut samples = probe::cpu::Samples::default();
        while t0.elapsed().as_secs() < 3 {
            s.pump(&mut |b, t| samples.take(b, t)).await;
        }
        probe::cpu::detach(&mut s).unwrap();
        s.drain(&mut |b, t| samples.take(b, t));
        let c = s.counters();
        for &k in agent_ebpf::Counter::ALL { println!("{} {}", k.name(), c.get(k)); }
        let mut ends = std::collections::BTreeMap::new();
        let (mut deep, mut n) = (0, 0);
        for (k, v) in &samples.counts { let st = &samples.stacks[&k.stack]; *ends.entry(st.end.name()).or_insert(0) += v; deep += st.user.len() as u64 * v; n += v;
          if !st.end.is_complete() { println!("{:?} {:x?}", st.end, st.user.iter().map(|f| (f >> 48, f & 0xffffffffffff)).collect::<Vec<_>>()); } }
        println!("{ends:?} depth {} bytes {} maps {} notes {:?} undecoded {}", deep as f64 / n as f64, s.bytes(), s.map_bytes(), s.targets().notes(), samples.undecoded);
        println!("ns/sample {}", c.get(agent_ebpf::Counter::Nanoseconds) as f64 / c.get(agent_ebpf::Counter::Emitted) as f64);
        for m in s.targets().modules() { println!("{} {}", m.slot, m.name); }
    });
}
