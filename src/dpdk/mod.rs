//! Safe handles on the parts of DPDK that flowgate uses. Mechanism only: no policy and no defaults live here.

pub mod bpf;
