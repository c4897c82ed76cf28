//! Reading a user's eBPF object: an ELF file whose section `flowgate` holds one function that stands on its own.
//!
//! Owns what may be in such a program as far as its text shows it (no maps, no kernel helpers, no further functions, jumps
//! that stay inside); what it does with memory is for rte_bpf's verifier.

use object::read::elf::ElfFile64;
use object::{Architecture, LittleEndian, Object, ObjectSection, ObjectSymbol, RelocationTarget, SymbolKind};

use crate::dpdk::bpf::{Instruction, splice};

/// The section that holds the program.
pub const SECTION: &str = "flowgate";

/// A program's instructions and the names of what they are in.
#[derive(Debug)]
pub struct Code {
    instructions: Vec<Instruction>,
    /// Functions by their first instruction, in order.
    functions: Vec<(usize, String)>,
}

impl Code {
    /// Reads an object file's content; the error lists everything that flowgate cannot run.
    pub fn read(file: &[u8]) -> Result<Code, Vec<String>> {
        let elf = ElfFile64::<LittleEndian>::parse(file)
            .ok()
            .filter(|elf| elf.architecture() == Architecture::Bpf)
            .ok_or_else(|| {
                vec!["is not a little-endian eBPF object; compile it with clang -target bpfel".to_owned()]
            })?;
        let Some(section) = elf.section_by_name(SECTION) else {
            return Err(vec![format!(
                "has no section {SECTION:?}; mark the function __attribute__((section(\"{SECTION}\")))"
            )]);
        };
        let broken = |error: object::Error| vec![format!("has a broken section {SECTION:?}: {error}")];
        let (words, rest) = section.data().map_err(broken)?.as_chunks::<{ Instruction::SIZE }>();
        if words.is_empty() || !rest.is_empty() {
            return Err(vec![format!("has a section {SECTION:?} that is not a program")]);
        }
        let mut functions: Vec<(usize, String)> = elf
            .symbols()
            .filter(|symbol| symbol.kind() == SymbolKind::Text && symbol.section_index() == Some(section.index()))
            .filter_map(|symbol| Some((symbol.address() as usize / Instruction::SIZE, symbol.name().ok()?.to_owned())))
            .filter(|(_, name)| !name.is_empty() && !name.starts_with("LBB"))
            .collect();
        functions.sort();
        let code =
            Code { instructions: words.iter().map(|word| Instruction::from_le_bytes(*word)).collect(), functions };

        let mut mistakes = Vec::new();
        if let [_, second, ..] = &code.functions[..] {
            let name = &second.1;
            mistakes.push(format!(
                "section {SECTION:?} holds a second function, {name}; inline it (static __always_inline)"
            ));
        }
        for (offset, relocation) in section.relocations() {
            let at = offset as usize / Instruction::SIZE;
            let symbol = match relocation.target() {
                RelocationTarget::Symbol(index) => elf.symbol_by_index(index).ok(),
                _ => None,
            };
            let home = symbol.as_ref().and_then(|symbol| elf.section_by_index(symbol.section_index()?).ok());
            let home = home.and_then(|home| home.name().ok().map(str::to_owned)).unwrap_or_default();
            let name = symbol.and_then(|symbol| symbol.name().ok().map(str::to_owned)).unwrap_or_default();
            let what = match code.instructions.get(at) {
                Some(call) if call.code == CALL => continue,
                _ if home == ".maps" || home == "maps" => {
                    format!("uses the map {name}; flowgate's programs have no maps")
                }
                _ if name.is_empty() || name == home => {
                    format!("uses a global variable in {home:?}; flowgate's programs have no data of their own")
                }
                _ => format!("uses the global variable {name}; flowgate's programs have no data of their own"),
            };
            mistakes.push(code.at(at, &what));
        }
        code.check(&mut mistakes);
        mistakes.dedup();
        if mistakes.is_empty() { Ok(code) } else { Err(mistakes) }
    }

    /// A statement about an instruction.
    fn at(&self, at: usize, what: &str) -> String {
        format!("instruction {at}{} {what}", self.function(at))
    }

    /// ` of NAME` for the function that an instruction is in, if it has a name.
    fn function(&self, at: usize) -> String {
        let name = self.functions.iter().rev().find(|(start, _)| *start <= at);
        name.map_or(String::new(), |(_, name)| format!(" of {name}"))
    }

    /// What relocations do not show: calls, 64-bit loads of kernel objects, and where jumps lead.
    fn check(&self, mistakes: &mut Vec<String>) {
        let mut second_half = vec![false; self.instructions.len() + 1];
        let mut at = 0;
        while at < self.instructions.len() {
            if self.instructions[at].code == LOAD_64 {
                second_half[at + 1] = true;
                at += 1;
            }
            at += 1;
        }
        let mut last = Instruction::new(0, 0, 0, 0, 0);
        for (at, &instruction) in self.instructions.iter().enumerate().filter(|(at, _)| !second_half[*at]) {
            last = instruction;
            let what = match (instruction.code, instruction.source(), instruction.immediate) {
                (CALL, 0, helper) => {
                    format!("calls the kernel helper {}; flowgate's programs have no helpers", helper_name(helper))
                }
                (CALL, 1, _) => "calls another function; inline it (static __always_inline)".to_owned(),
                (CALL, ..) => "calls a kernel function; flowgate's programs have none".to_owned(),
                (LOAD_64, source, _) if source != 0 => "refers to a map; flowgate's programs have no maps".to_owned(),
                (code, ..) if code & 0x07 == JUMP_32 => "is a 32-bit jump; compile with -mcpu=v2".to_owned(),
                _ if instruction.is_jump() => {
                    let to = at as i64 + 1 + i64::from(instruction.offset);
                    match usize::try_from(to) {
                        Ok(to) if to <= at => "jumps back; unroll the loop (#pragma unroll)".to_owned(),
                        Ok(to) if to < self.instructions.len() && !second_half[to] => continue,
                        _ => "jumps out of the program".to_owned(),
                    }
                }
                _ => continue,
            };
            mistakes.push(self.at(at, &what));
        }
        if !matches!(last.code, EXIT | ALWAYS) || second_half[self.instructions.len()] {
            mistakes.push(self.at(self.instructions.len() - 1, "is the last and does not return"));
        }
    }

    /// How many instructions the object has.
    pub fn len(&self) -> usize {
        self.instructions.len()
    }

    /// The program as rte_bpf takes it, and for each of its instructions the object's.
    ///
    /// rte_bpf's verifier knows `pointer += number` for a pointer but not `number += pointer`, which compilers write just as
    /// often: there the operands change places, by way of two words of the stack.
    pub fn linked(&self) -> (Vec<Instruction>, Vec<usize>) {
        let turned = if self.fills_stack() { Vec::new() } else { self.pointers_added() };
        splice(&self.instructions, |at, instruction| {
            if instruction.code == TO_LITTLE_ENDIAN {
                // rte_bpf's interpreter does not cut off what is wider.
                let (register, above) = (instruction.destination(), 64 - instruction.immediate.clamp(1, 64));
                return vec![
                    Instruction::new(SHIFT_LEFT, register, 0, 0, above),
                    Instruction::new(SHIFT_RIGHT, register, 0, 0, above),
                ];
            }
            if !turned.contains(&at) {
                return vec![instruction];
            }
            let (number, pointer) = (instruction.destination(), instruction.source());
            vec![
                Instruction::new(STORE_64, FRAME, number, -STACK, 0),
                Instruction::new(STORE_64, FRAME, pointer, 8 - STACK, 0),
                Instruction::new(MOVE, number, pointer, 0, 0),
                Instruction::new(READ_64, pointer, FRAME, -STACK, 0),
                Instruction::new(ADD, number, pointer, 0, 0),
                Instruction::new(READ_64, pointer, FRAME, 8 - STACK, 0),
            ]
        })
    }

    /// True if the program may itself use the two words at the stack's far end.
    fn fills_stack(&self) -> bool {
        self.instructions.iter().any(|i| match i.code & 0x07 {
            0x01 => i.source() == FRAME && i.offset < 16 - STACK,
            0x02 | 0x03 => i.destination() == FRAME && i.offset < 16 - STACK,
            0x07 => i.code & 0x08 == 0 && (-i32::from(STACK)..16 - i32::from(STACK)).contains(&i.immediate),
            _ => false,
        })
    }

    /// Where a pointer is added to a number. Jumps lead forward only, so that one pass sees each instruction after
    /// all that lead to it. What it does not follow it takes for a number; the verifier has the last word.
    fn pointers_added(&self) -> Vec<usize> {
        /// One bit per register and one per word of the stack: those that hold a pointer.
        type Pointers = (u16, u64);
        let mut arriving: Vec<Option<Pointers>> = vec![None; self.instructions.len() + 1];
        arriving[0] = Some((1 << 1 | 1 << FRAME, 0));
        let mut found = Vec::new();
        for (at, &instruction) in self.instructions.iter().enumerate() {
            let Some((mut registers, mut stack)) = arriving[at] else { continue };
            let (to, from) = (instruction.destination(), instruction.source());
            let holds = |register: u8| registers & 1 << register != 0;
            let slot = |offset: i16| 1u64.checked_shl((i32::from(offset) + i32::from(STACK)) as u32 / 8).unwrap_or(0);
            let result = match instruction.code {
                MOVE => holds(from),
                ADD => {
                    if !holds(to) && holds(from) {
                        found.push(at);
                    }
                    holds(to) || holds(from)
                }
                SUBTRACT => holds(to) && !holds(from),
                ADD_NUMBER | SUBTRACT_NUMBER => holds(to),
                READ_64 if from == FRAME => stack & slot(instruction.offset) != 0,
                STORE_64 if to == FRAME => {
                    let slot = slot(instruction.offset);
                    stack = if holds(from) { stack | slot } else { stack & !slot };
                    true
                }
                // Stores and jumps change no register.
                code if matches!(code & 0x07, 0x02 | 0x03 | JUMP) => holds(to),
                _ => false,
            };
            registers = registers & !(1 << to) | u16::from(result) << to;
            let mut reach = |next: usize| {
                if let Some(state) = arriving.get_mut(next) {
                    let (r, s) = state.unwrap_or((registers, stack));
                    *state = Some((r & registers, s & stack));
                }
            };
            if instruction.is_jump()
                && let Some(next) = at.checked_add_signed(1 + isize::from(instruction.offset))
            {
                reach(next);
            }
            match instruction.code {
                EXIT | ALWAYS => (),
                LOAD_64 => reach(at + 2),
                _ => reach(at + 1),
            }
        }
        found
    }

    /// The verifier's words with its program counters turned into instructions of the object: `lead` instructions stand
    /// before the linked ones, whose `origin` is known.
    pub fn place(&self, words: &str, lead: usize, origin: &[usize]) -> String {
        let mut parts = words.split("pc:");
        let mut text = parts.next().unwrap_or_default().to_owned();
        for part in parts {
            let part = part.trim_start();
            let end = part.find(|c: char| !c.is_ascii_digit()).unwrap_or(part.len());
            let at = part[..end].parse::<usize>().ok().and_then(|at| origin.get(at.checked_sub(lead)?).copied());
            match at {
                Some(at) => text.push_str(&format!("instruction {at}{}{}", self.function(at), &part[end..])),
                None => text.push_str(&format!("pc: {part}")),
            }
        }
        text
    }
}

/// Bytes of a program's stack.
const STACK: i16 = 512;
/// The register that points to the stack's end.
const FRAME: u8 = 10;
const MOVE: u8 = 0xbf;
const ADD: u8 = 0x0f;
const ADD_NUMBER: u8 = 0x07;
const SUBTRACT: u8 = 0x1f;
const SUBTRACT_NUMBER: u8 = 0x17;
const SHIFT_LEFT: u8 = 0x67;
const SHIFT_RIGHT: u8 = 0x77;
const TO_LITTLE_ENDIAN: u8 = 0xd4;
const READ_64: u8 = 0x79;
const STORE_64: u8 = 0x7b;
const CALL: u8 = 0x85;
const EXIT: u8 = 0x95;
const ALWAYS: u8 = 0x05;
const LOAD_64: u8 = 0x18;
/// The class of 64-bit compare-and-jump instructions.
const JUMP: u8 = 0x05;
/// The class of 32-bit compare-and-jump instructions, which rte_bpf does not know.
const JUMP_32: u8 = 0x06;

/// The name of a kernel helper, by the number it is called by.
fn helper_name(number: i32) -> String {
    let name = usize::try_from(number).ok().and_then(|number| HELPERS.split_whitespace().nth(number));
    name.map_or_else(|| format!("number {number}"), |name| format!("bpf_{name}"))
}

/// The kernel's helpers by number, without `bpf_` (linux/bpf.h, __BPF_FUNC_MAPPER; the list is closed).
const HELPERS: &str = "\
    unspec map_lookup_elem map_update_elem map_delete_elem probe_read ktime_get_ns trace_printk get_prandom_u32 \
    get_smp_processor_id skb_store_bytes l3_csum_replace l4_csum_replace tail_call clone_redirect \
    get_current_pid_tgid get_current_uid_gid get_current_comm get_cgroup_classid skb_vlan_push skb_vlan_pop \
    skb_get_tunnel_key skb_set_tunnel_key perf_event_read redirect get_route_realm perf_event_output \
    skb_load_bytes get_stackid csum_diff skb_get_tunnel_opt skb_set_tunnel_opt skb_change_proto skb_change_type \
    skb_under_cgroup get_hash_recalc get_current_task probe_write_user current_task_under_cgroup skb_change_tail \
    skb_pull_data csum_update set_hash_invalid get_numa_node_id skb_change_head xdp_adjust_head probe_read_str \
    get_socket_cookie get_socket_uid set_hash setsockopt skb_adjust_room redirect_map sk_redirect_map \
    sock_map_update xdp_adjust_meta perf_event_read_value perf_prog_read_value getsockopt override_return \
    sock_ops_cb_flags_set msg_redirect_map msg_apply_bytes msg_cork_bytes msg_pull_data bind xdp_adjust_tail \
    skb_get_xfrm_state get_stack skb_load_bytes_relative fib_lookup sock_hash_update msg_redirect_hash \
    sk_redirect_hash lwt_push_encap lwt_seg6_store_bytes lwt_seg6_adjust_srh lwt_seg6_action rc_repeat \
    rc_keydown skb_cgroup_id get_current_cgroup_id get_local_storage sk_select_reuseport skb_ancestor_cgroup_id \
    sk_lookup_tcp sk_lookup_udp sk_release map_push_elem map_pop_elem map_peek_elem msg_push_data msg_pop_data \
    rc_pointer_rel spin_lock spin_unlock sk_fullsock tcp_sock skb_ecn_set_ce get_listener_sock skc_lookup_tcp \
    tcp_check_syncookie sysctl_get_name sysctl_get_current_value sysctl_get_new_value sysctl_set_new_value \
    strtol strtoul sk_storage_get sk_storage_delete send_signal tcp_gen_syncookie skb_output probe_read_user \
    probe_read_kernel probe_read_user_str probe_read_kernel_str tcp_send_ack send_signal_thread jiffies64 \
    read_branch_records get_ns_current_pid_tgid xdp_output get_netns_cookie get_current_ancestor_cgroup_id \
    sk_assign ktime_get_boot_ns seq_printf seq_write sk_cgroup_id sk_ancestor_cgroup_id ringbuf_output \
    ringbuf_reserve ringbuf_submit ringbuf_discard ringbuf_query csum_level skc_to_tcp6_sock skc_to_tcp_sock \
    skc_to_tcp_timewait_sock skc_to_tcp_request_sock skc_to_udp6_sock get_task_stack load_hdr_opt store_hdr_opt \
    reserve_hdr_opt inode_storage_get inode_storage_delete d_path copy_from_user snprintf_btf seq_printf_btf \
    skb_cgroup_classid redirect_neigh per_cpu_ptr this_cpu_ptr redirect_peer task_storage_get \
    task_storage_delete get_current_task_btf bprm_opts_set ktime_get_coarse_ns ima_inode_hash sock_from_file \
    check_mtu for_each_map_elem snprintf sys_bpf btf_find_by_name_kind sys_close timer_init timer_set_callback \
    timer_start timer_cancel get_func_ip get_attach_cookie task_pt_regs get_branch_snapshot trace_vprintk \
    skc_to_unix_sock kallsyms_lookup_name find_vma loop strncmp get_func_arg get_func_ret get_func_arg_cnt \
    get_retval set_retval xdp_get_buff_len xdp_load_bytes xdp_store_bytes copy_from_user_task skb_set_tstamp \
    ima_file_hash kptr_xchg map_lookup_percpu_elem skc_to_mptcp_sock dynptr_from_mem ringbuf_reserve_dynptr \
    ringbuf_submit_dynptr ringbuf_discard_dynptr dynptr_read dynptr_write dynptr_data tcp_raw_gen_syncookie_ipv4 \
    tcp_raw_gen_syncookie_ipv6 tcp_raw_check_syncookie_ipv4 tcp_raw_check_syncookie_ipv6 ktime_get_tai_ns \
    user_ringbuf_drain cgrp_storage_get cgrp_storage_delete";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn helpers_have_the_kernels_numbers() {
        assert_eq!(helper_name(1), "bpf_map_lookup_elem");
        assert_eq!(helper_name(5), "bpf_ktime_get_ns");
        assert_eq!(helper_name(211), "bpf_cgrp_storage_delete");
        assert_eq!(helper_name(212), "number 212");
        assert_eq!(helper_name(-1), "number -1");
    }

    fn check(instructions: &[(u8, u8, i16, i32)]) -> Vec<String> {
        let instructions = instructions
            .iter()
            .map(|&(code, registers, offset, immediate)| Instruction { code, registers, offset, immediate })
            .collect();
        let mut mistakes = Vec::new();
        Code { instructions, functions: vec![(0, "f".into())] }.check(&mut mistakes);
        mistakes
    }

    #[test]
    fn jumps_stay_inside_and_the_end_returns() {
        let r0 = (0xb7, 0, 0, 1);
        assert!(check(&[r0, (EXIT, 0, 0, 0)]).is_empty());
        assert_eq!(check(&[r0]), ["instruction 0 of f is the last and does not return"]);
        assert_eq!(check(&[r0, (0x15, 0, 1, 0), (EXIT, 0, 0, 0)]), ["instruction 1 of f jumps out of the program"]);
        assert_eq!(check(&[(ALWAYS, 0, -2, 0)]), ["instruction 0 of f jumps out of the program"]);
        let wide = [(LOAD_64, 0, 0, 1), (0, 0, 0, 0)];
        assert!(check(&[wide[0], wide[1], (EXIT, 0, 0, 0)]).is_empty());
        let into = check(&[(ALWAYS, 0, 1, 0), wide[0], wide[1], (EXIT, 0, 0, 0)]);
        assert_eq!(into, ["instruction 0 of f jumps out of the program"]);
        assert_eq!(check(&wide), ["instruction 1 of f is the last and does not return"]);
        assert_eq!(check(&wide[..1]), ["instruction 0 of f is the last and does not return"]);
        assert!(check(&[(0x16, 0, 0, 0), (EXIT, 0, 0, 0)])[0].ends_with("compile with -mcpu=v2"));
    }

    #[test]
    fn what_is_no_object_is_refused() {
        for bytes in [&b""[..], b"#!/bin/sh\n", &std::fs::read("/proc/self/exe").expect("this test's own program")] {
            let mistakes = Code::read(bytes).expect_err("no eBPF");
            assert!(mistakes[0].starts_with("is not a little-endian eBPF object"), "{mistakes:?}");
        }
    }
}
