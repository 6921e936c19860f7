/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/*
 * What do the threads of the lineage wait for while an operation is in flight? Every change of the thread on a CPU,
 * every wake-up, and what is sent to a unix socket. observe/probes/sched.py attaches it.
 *
 * Raw tracepoints: the scheduler's have interrupts off, so nothing of ours interrupts them and no event is skipped.
 * OFFSET_* are the kernel's own (its BTF), defined when this is compiled.
 */
#include <linux/types.h>
#include "registers.h"
#include "record.h"
#include "lineage.h"
#include "in_flight.h"

#define FILE_BYTES 24
#define FILESYSTEM_BYTES 8
/* TASK_INTERRUPTIBLE | TASK_UNINTERRUPTIBLE | TASK_WAKING (woken on its way to sleep), include/linux/sched.h */
#define STATE_SLEEPS 0x203
#define FAMILY_UNIX 1
#define NO_CALL -1
#define RECORD_FILE 71 /* inside the ring only: no kind of event has this number */
#define NO_STACK -1

/* Small, since there are many; a ring of its own. observe/probes/sched.py has the same layout. */
struct sched_record {
	u64 time_ns;
	u32 pid; /* who leaves the CPU; who is woken; who sends. Zero: nobody of the lineage */
	u32 tid;
	u16 kind;
	u16 state;
	s16 call;     /* number of the system call in which it leaves the CPU */
	u16 has_file; /* its first argument is a descriptor: a record of kind RECORD_FILE of the thread went before */
	u32 other_pid; /* who takes the CPU; who wakes (zero: an interrupt) */
	u32 other_tid;
	s32 stack;
	s32 fd;
	u64 unused[2];
};

/* The same for RECORD_FILE: what a descriptor is. */
struct sched_file {
	u64 time_ns;
	u32 pid;
	u32 tid;
	u16 kind;
	u16 unused[3];
	char file[FILE_BYTES];
	char filesystem[FILESYSTEM_BYTES];
};

BPF_RINGBUF_OUTPUT(sched_records, 1); /* user space creates it in its real size */
#define STACKS 4096
BPF_TABLE("stacktrace", int, struct bpf_stacktrace, stacks, STACKS);
/* How many interrupts deep a CPU is: the thread that it interrupts does not itself wake anybody. */
BPF_PERCPU_ARRAY(interrupts, u32, 1);

#define READ(to, from) bpf_probe_read_kernel(&(to), sizeof(to), (const void *)(from))

static __always_inline u32 tgid_of(u64 task)
{
	u32 tgid = 0;

	READ(tgid, task + OFFSET_task_struct_tgid);
	return tgid;
}

static __always_inline u32 tid_of(u64 task)
{
	u32 tid = 0;

	READ(tid, task + OFFSET_task_struct_pid);
	return tid;
}

static __always_inline u32 is_in_lineage(u32 pid)
{
	u32 found = lineage.lookup(&pid) != NULL;

	asm volatile("" : "+r"(found)); /* or the compiler combines two pointers, which the verifier forbids */
	return found;
}

static __always_inline struct sched_record *reserve_sched(u16 kind)
{
	struct sched_record *record = sched_records.ringbuf_reserve(sizeof(struct sched_record));

	if (!record) {
		count(COUNTER_RING_BUFFER);
		return NULL;
	}
	record->time_ns = bpf_ktime_get_boot_ns();
	record->pid = record->tid = 0;
	record->kind = kind;
	record->state = 0;
	record->call = NO_CALL;
	record->has_file = 0;
	record->other_pid = record->other_tid = 0;
	record->stack = NO_STACK;
	record->fd = -1;
	return record;
}

static __always_inline void submit_sched(struct sched_record *record)
{
	sched_records.ringbuf_submit(record, BPF_RB_NO_WAKEUP);
	count(COUNTER_RECORDS);
}

/* Tell the name and the kind of file system of a descriptor of the current process; whether it is one. */
static __always_inline u32 tell_file(u32 fd, u64 id)
{
	u64 at = bpf_get_current_task(), table = 0, name = 0, filesystem = 0;
	struct sched_file *file;
	u32 descriptors = 0;

	READ(at, at + OFFSET_task_struct_files);
	READ(table, at + OFFSET_files_struct_fdt);
	READ(descriptors, table + OFFSET_fdtable_max_fds);
	if (fd >= descriptors)
		return 0;
	READ(at, table + OFFSET_fdtable_fd);
	READ(at, at + 8ULL * fd);
	if (!at)
		return 0;
	READ(at, at + OFFSET_file_f_path + OFFSET_path_dentry);
	READ(name, at + OFFSET_dentry_d_name + OFFSET_qstr_name);
	READ(filesystem, at + OFFSET_dentry_d_sb);
	READ(filesystem, filesystem + OFFSET_super_block_s_type);
	READ(filesystem, filesystem + OFFSET_file_system_type_name);
	file = sched_records.ringbuf_reserve(sizeof(struct sched_file));
	if (!file) {
		count(COUNTER_RING_BUFFER);
		return 0;
	}
	file->time_ns = 0;
	file->pid = id >> 32;
	file->tid = id;
	file->kind = RECORD_FILE;
	file->file[0] = file->filesystem[0] = 0;
	bpf_probe_read_kernel_str(file->file, FILE_BYTES, (const void *)name);
	bpf_probe_read_kernel_str(file->filesystem, FILESYSTEM_BYTES, (const void *)filesystem);
	sched_records.ringbuf_submit(file, BPF_RB_NO_WAKEUP);
	return 1;
}

/* Where the current thread goes to sleep. */
struct sleep {
	s64 call;
	s64 fd;
	s64 stack;
	u32 has_file;
};

static __always_inline void find_sleep(struct sleep *sleep, void *ctx, u64 id)
{
	struct registers regs;

	bpf_probe_read_kernel(&regs, sizeof(regs), (const void *)bpf_task_pt_regs(bpf_get_current_task_btf()));
	if (IN_SYSTEM_CALL(&regs)) {
		u64 arguments[] = ARGUMENTS(&regs);

		sleep->call = SYSCALL_NUMBER(&regs);
		if (CALL_SAYS_ALL(sleep->call))
			return;
		sleep->fd = (s32)arguments[0];
		if (sleep->fd >= 0 && arguments[0] < (1 << 20))
			sleep->has_file = tell_file(sleep->fd, id);
	}
	sleep->stack = stacks.get_stackid(ctx, 0);
}

int sched_switch(struct bpf_raw_tracepoint_args *ctx)
{
	u64 preempted = ctx->args[0], prev = ctx->args[1], next = ctx->args[2], id;
	struct sleep sleep = { .call = NO_CALL, .fd = -1, .stack = NO_STACK };
	u32 pid, next_pid, state = 0, zero = 0, leaves, takes, *depth;
	struct sched_record *record;

	if (!any_in_flight())
		return 0;
	depth = interrupts.lookup(&zero);
	if (depth) /* no interrupt switches threads: should one's end have been missed, it is made up for here */
		*depth = 0;
	id = bpf_get_current_pid_tgid();
	pid = id >> 32;
	next_pid = tgid_of(next);
	leaves = is_in_lineage(pid);
	takes = is_in_lineage(next_pid);
	if (!leaves && !takes)
		return 0;
	if (leaves && !(preempted & 1)) {
		READ(state, prev + OFFSET_task_struct_state);
		if (state & STATE_SLEEPS)
			find_sleep(&sleep, ctx, id);
	}
	record = reserve_sched(KIND_SCHED_SWITCH);
	if (!record)
		return 0;
	if (takes) {
		record->other_pid = next_pid;
		record->other_tid = tid_of(next);
	}
	if (leaves) {
		record->pid = pid;
		record->tid = id;
		record->state = state;
		record->call = sleep.call;
		record->fd = sleep.fd;
		record->has_file = sleep.has_file;
		record->stack = sleep.stack;
	}
	submit_sched(record);
	return 0;
}

/* A thread of the lineage is woken, or begins. */
static __always_inline int woken(u64 task, u16 kind)
{
	struct sched_record *record;
	u32 pid, zero = 0, *depth;
	u64 id;

	if (!any_in_flight())
		return 0;
	pid = tgid_of(task);
	if (!is_in_lineage(pid))
		return 0;
	record = reserve_sched(kind);
	if (!record)
		return 0;
	record->pid = pid;
	record->tid = tid_of(task);
	depth = interrupts.lookup(&zero);
	if (depth && !*depth) {
		id = bpf_get_current_pid_tgid();
		record->other_pid = id >> 32;
		record->other_tid = id;
	}
	submit_sched(record);
	return 0;
}

int sched_waking(struct bpf_raw_tracepoint_args *ctx)
{
	return woken(ctx->args[0], KIND_SCHED_WAKING);
}

int sched_wakeup_new(struct bpf_raw_tracepoint_args *ctx)
{
	return woken(ctx->args[0], KIND_SCHED_WAKEUP_NEW);
}

/* What a process that works for one container tells a daemon that is not asleep: no wake-up shows it. */
int sock_send_length(struct bpf_raw_tracepoint_args *ctx)
{
	struct sched_record *record;
	u16 family = 0;
	u32 *role;
	u64 id;

	if (!any_in_flight())
		return 0;
	role = role_of_current();
	if (!role || *role & (ROLE_DOCKERD | ROLE_CONTAINERD))
		return 0;
	READ(family, ctx->args[0] + OFFSET_sock_common_skc_family);
	if (family != FAMILY_UNIX)
		return 0;
	record = reserve_sched(KIND_SOCK_SEND_LENGTH);
	if (!record)
		return 0;
	id = bpf_get_current_pid_tgid();
	record->pid = id >> 32;
	record->tid = id;
	submit_sched(record);
	return 0;
}

static __always_inline int interrupt(s32 deeper)
{
	u32 zero = 0, *depth = interrupts.lookup(&zero);

	if (depth && (deeper > 0 || *depth)) /* attached in the middle of one: its end has no beginning */
		*depth += deeper;
	return 0;
}

int irq_handler_entry(void *ctx) { return interrupt(1); }
int irq_handler_exit(void *ctx) { return interrupt(-1); }
int softirq_entry(void *ctx) { return interrupt(1); }
int softirq_exit(void *ctx) { return interrupt(-1); }
int hrtimer_expire_entry(void *ctx) { return interrupt(1); }
int hrtimer_expire_exit(void *ctx) { return interrupt(-1); }
