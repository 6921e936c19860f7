/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/*
 * One record of the ring buffer: fixed size, so that a reader decodes it as columns.
 * observe/probes/layout.py has the same layout; tests/kernel/test_layout.py compares the two.
 */
#ifndef OBSERVE_RECORD_H
#define OBSERVE_RECORD_H

/*
 * bpf_probe_read_user() and bpf_probe_read_user_str() by other names: for each call of them by their own bcc reads
 * all of /proc/kallsyms, to see whether the kernel has them (it has since 5.5). That was two thirds of the compile.
 */
static long (*read_user)(void *to, u32 bytes, const void *from) = (void *)BPF_FUNC_probe_read_user;
static long (*read_user_str)(void *to, u32 bytes, const void *from) = (void *)BPF_FUNC_probe_read_user_str;

#define PATH_BYTES 256
#define DETAIL_BYTES 512

struct record {
	u64 time_ns;     /* boot clock: entry of a system call, the moment of everything else */
	u64 duration_ns; /* entry to return of a system call */
	u64 goroutine;   /* Go's g register at entry */
	s64 ret;
	u64 flags;
	u32 pid; /* thread group */
	u32 tid;
	s32 fd;
	u16 kind;
	u16 marks;
	u16 path_bytes; /* how much of each string is set; the rest is old memory */
	u16 path2_bytes;
	u16 detail_bytes;
	u16 unused;
	char comm[16];
	char path[PATH_BYTES];
	char path2[PATH_BYTES];
	char detail[DETAIL_BYTES];
};

/* Values of observe.model.Kind and observe.model.Mark that the programs themselves set. */
#define KIND_SCHED_PROCESS_FORK 64
#define KIND_SCHED_PROCESS_EXEC 65
#define KIND_SCHED_PROCESS_EXIT 66
#define KIND_SCHED_SWITCH 67
#define KIND_SCHED_WAKING 68
#define KIND_SOCK_SEND_LENGTH 69
#define KIND_SCHED_WAKEUP_NEW 70
#define KIND_API_REQUEST 80
#define KIND_API_RESPONSE 81
#define KIND_FUNCTION_ENTRY 112
#define KIND_FUNCTION_RETURN 113
#define MARK_PATH_UNREADABLE 2
#define MARK_TRUNCATED 4
#define MARK_ENTRYPOINT 16

/* What user space reads beside the records; observe/probes/layout.py names them in this order. */
#define COUNTER_RING_BUFFER 0       /* reserves that failed */
#define COUNTER_LINEAGE 1           /* processes and connections the filter had no room for */
#define COUNTER_UNMATCHED_RETURNS 2 /* returns whose entry was not seen */
#define COUNTER_RECORDS 3           /* records that were submitted */
#define COUNTERS 4

BPF_RINGBUF_OUTPUT(records, 1); /* user space creates it in its real size */
BPF_PERCPU_ARRAY(counters, u64, COUNTERS);

static __always_inline void count(u32 counter)
{
	u64 *value = counters.lookup(&counter);

	if (value)
		*value += 1;
}

/* A record with its common fields set, or NULL, counted. */
static __always_inline struct record *reserve(u16 kind, u64 time_ns)
{
	struct record *record = records.ringbuf_reserve(sizeof(struct record));
	u64 id = bpf_get_current_pid_tgid();

	if (!record) {
		count(COUNTER_RING_BUFFER);
		return NULL;
	}
	record->time_ns = time_ns;
	record->duration_ns = 0;
	record->goroutine = 0;
	record->ret = 0;
	record->flags = 0;
	record->pid = id >> 32;
	record->tid = id;
	record->fd = -1;
	record->kind = kind;
	record->marks = 0;
	record->path_bytes = 0;
	record->path2_bytes = 0;
	record->detail_bytes = 0;
	record->unused = 0;
	bpf_get_current_comm(record->comm, sizeof(record->comm));
	return record;
}

/*
 * Without a flag the kernel wakes the reader for the first record after it has read all: once a batch, not an event.
 * An answer of the API wakes it, too: who its container is must be asked before the container may be gone.
 */
static __always_inline void submit(struct record *record)
{
	u64 wakes = record->kind == KIND_API_RESPONSE ? BPF_RB_FORCE_WAKEUP : 0;

	records.ringbuf_submit(record, wakes);
	count(COUNTER_RECORDS);
}

#endif
