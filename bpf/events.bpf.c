/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/*
 * What do the engine and what it starts ask of the kernel? System calls of the lineage, its forks, execs
 * and exits, and the boundaries of API operations. observe/probes/events.py says which system calls, and
 * which of their arguments are what.
 */
#include <linux/types.h>
#include "registers.h"
#include "record.h"
#include "lineage.h"
#include "api.h"

#define CLONE_THREAD 0x00010000
#define CLONE_NEWNS 0x00020000
/* An open that is looked at: it creates, writes, or is a name for later (include/uapi/asm-generic/fcntl.h). */
#define O_WRONLY 0x1
#define O_RDWR 0x2
#define O_CREAT 0x40
#define O_PATH 0x200000
#define O_LOOKUPS 0x30000 /* O_DIRECTORY | O_NOFOLLOW: steps on the way to a name */
#define FAMILY_NETLINK 16

/* struct call.what: how a system call is treated. */
#define CALL_RECORD 0
#define CALL_OPEN 1       /* see opens_to_act */
#define CALL_EXEC 2       /* path and arguments are gone at the return: read at entry */
#define CALL_CLONE 3
#define CALL_CLONE3 4 /* flags stand in user memory */
#define CALL_CHANGES_ROOT 5
#define CALL_SETNS 6
#define CALL_OPENAT2 7 /* flags stand in user memory */
#define CALL_SIZED_STRING 8 /* detail is as long as the next argument says */
#define CALL_NETLINK 9      /* only to a netlink address; flags are the type of its first message */
#define CALL_API_READ 10    /* from here on: dockerd only */
#define CALL_API_WRITE 11
#define CALL_API_ACCEPT 12
#define CALL_API_CLOSE 13

#define ARGUMENTS_KEPT 8 /* five are used; a power of two makes every index provably inside */

/* A system call that is looked at; positions of arguments count from 1, 0 is none. Index: its number. */
struct call {
	u16 kind; /* observe.model.Kind; 0: not looked at */
	u8 what;
	u8 path;
	u8 path2;
	u8 detail;
	u8 flags;
	u8 fd;
};

#define CALL_NUMBERS 512
BPF_ARRAY(calls, struct call, CALL_NUMBERS);

/* Between entry and return; key: thread group << 32 | thread. */
struct pending {
	u64 time_ns;
	u64 goroutine;
	u64 flags;
	u64 arguments[ARGUMENTS_KEPT];
	u32 number;
};

#define PENDING_CALLS 16384
BPF_HASH(pending, u64, struct pending, PENDING_CALLS);

#define ARGUMENT_BYTES 256
#define EXEC_ARGUMENTS 24

/* Strings of an execve, read at its entry. */
struct exec_text {
	u16 path_bytes;
	u16 detail_bytes;
	u16 marks;
	char path[PATH_BYTES];
	char detail[DETAIL_BYTES + ARGUMENT_BYTES]; /* room for one argument beyond a masked offset */
};

#define PENDING_EXECS 1024
BPF_HASH(exec_texts, u64, struct exec_text, PENDING_EXECS);
BPF_PERCPU_ARRAY(exec_scratch, struct exec_text, 1);

static __always_inline u64 argument(struct pending *entry, u32 position)
{
	return entry->arguments[(position - 1) & (ARGUMENTS_KEPT - 1)];
}

static __always_inline u16 read_string(char *to, u32 bytes, u64 from, struct record *record)
{
	s64 length;

	if (!from) /* a null pointer is a value, not a failure */
		return 0;
	length = read_user_str(to, bytes, (const void *)from);
	if (length <= 0) {
		record->marks |= MARK_PATH_UNREADABLE;
		return 0;
	}
	if (length == bytes)
		record->marks |= MARK_TRUNCATED;
	return length - 1;
}

/* Path and arguments of an execve, joined by NUL. */
static __always_inline void read_exec(u64 id, u64 path, u64 argv)
{
	u32 zero = 0, offset = 0;
	struct exec_text *text = exec_scratch.lookup(&zero);
	s64 length;

	if (!text)
		return;
	text->marks = 0;
	length = read_user_str(text->path, PATH_BYTES, (const void *)path);
	text->path_bytes = length > 0 ? length - 1 : 0;
	if (length <= 0)
		text->marks |= MARK_PATH_UNREADABLE;
	for (u32 i = 0; i < EXEC_ARGUMENTS + 1; i++) {
		u64 from = 0;

		if (read_user(&from, sizeof(from), (const void *)(argv + 8 * i))) {
			text->marks |= MARK_PATH_UNREADABLE;
			break;
		}
		if (!from)
			break;
		if (offset >= DETAIL_BYTES || i == EXEC_ARGUMENTS) {
			text->marks |= MARK_TRUNCATED;
			break;
		}
		asm volatile("" : "+r"(offset)); /* or the compiler drops the mask that the verifier needs */
		length = read_user_str(&text->detail[offset & (DETAIL_BYTES - 1)], ARGUMENT_BYTES,
						 (const void *)from);
		if (length <= 0) {
			text->marks |= MARK_PATH_UNREADABLE;
			break;
		}
		if (length == ARGUMENT_BYTES)
			text->marks |= MARK_TRUNCATED;
		offset += length & (2 * ARGUMENT_BYTES - 1);
	}
	if (offset > DETAIL_BYTES) {
		text->marks |= MARK_TRUNCATED;
		offset = DETAIL_BYTES;
	}
	text->detail_bytes = offset;
	exec_texts.update(&id, text);
}

static __always_inline void copy_exec(struct record *record, struct exec_text *text)
{
	record->marks |= text->marks;
	record->path_bytes = text->path_bytes;
	record->detail_bytes = text->detail_bytes;
	bpf_probe_read_kernel(record->path, PATH_BYTES, text->path);
	bpf_probe_read_kernel(record->detail, DETAIL_BYTES, text->detail);
}

/* Flags of a call, which for clone3 and openat2 stand first in a structure in user memory. */
static __always_inline u64 flags_of(const struct call *call, struct pending *entry)
{
	u64 flags = 0;

	if (!call->flags)
		return 0;
	flags = argument(entry, call->flags);
	if (call->what == CALL_CLONE3 || call->what == CALL_OPENAT2) {
		u64 in_memory = 0;

		read_user(&in_memory, sizeof(in_memory), (const void *)flags);
		return in_memory;
	}
	return flags;
}

static __always_inline bool opens_to_act(u64 flags)
{
	return flags & (O_WRONLY | O_RDWR | O_CREAT) || (flags & O_PATH && !(flags & O_LOOKUPS));
}

/* sendto(fd, message, bytes, flags, address): struct nlmsghdr begins with a length, then the type. */
static __always_inline bool is_netlink(struct pending *entry)
{
	u16 family = 0, type = 0;

	bpf_probe_read_user(&family, sizeof(family), (const void *)argument(entry, 5));
	if (family != FAMILY_NETLINK)
		return false;
	bpf_probe_read_user(&type, sizeof(type), (const void *)(argument(entry, 2) + 4));
	entry->flags = type;
	return true;
}

/* It runs: what follows is the container's own. */
static __always_inline void forget_entrypoint(u64 id)
{
	u32 pid = id >> 32;

	lineage.delete(&pid);
	pending.delete(&id);
	exec_texts.delete(&id);
}

/* How a system call is treated, if it and the process that makes it are looked at. */
static __always_inline struct call *looked_at(u32 number, u32 **role)
{
	struct call *call;

	if (number >= CALL_NUMBERS)
		return NULL;
	call = calls.lookup(&number);
	if (!call || !call->kind)
		return NULL;
	*role = role_of_current();
	if (!*role || (call->what >= CALL_API_READ && !(**role & ROLE_DOCKERD)))
		return NULL;
	return call;
}

static __always_inline int entered(u32 number, struct call *call, u32 *role, struct registers *regs)
{
	u64 id = bpf_get_current_pid_tgid();

	if (*role & ROLE_ENTRYPOINT) {
		forget_entrypoint(id);
		return 0;
	}
	if (call->what == CALL_API_ACCEPT) /* only what it returns is of interest */
		return 0;

	struct pending entry = {
		.time_ns = bpf_ktime_get_boot_ns(),
		.goroutine = GOROUTINE(regs),
		.arguments = ARGUMENTS(regs),
		.number = number,
	};

	if (call->what == CALL_API_CLOSE) {
		api_closed(entry.arguments[0]);
		return 0;
	}
	if (call->what == CALL_API_READ || call->what == CALL_API_WRITE) {
		u32 fd = entry.arguments[0];

		if (!connections.lookup(&fd))
			return 0;
	}
	if (call->what == CALL_API_WRITE) {
		entry.flags = api_status(entry.arguments[0], (const char *)entry.arguments[1]);
		if (!entry.flags)
			return 0;
	} else {
		entry.flags = flags_of(call, &entry);
	}
	if ((call->what == CALL_OPEN || call->what == CALL_OPENAT2) && !opens_to_act(entry.flags))
		return 0;
	if (call->what == CALL_NETLINK && !is_netlink(&entry))
		return 0;
	if (call->what == CALL_EXEC) {
		read_exec(id, argument(&entry, call->path), argument(&entry, call->detail));
		*role |= ROLE_EXECUTES;
	}
	if (pending.update(&id, &entry))
		count(COUNTER_UNMATCHED_RETURNS);
	return 0;
}

/* What a return means for the lineage. */
static __always_inline void learn(const struct call *call, struct pending *entry, s64 ret, u32 *role)
{
	if (*role & (ROLE_DOCKERD | ROLE_CONTAINERD) || ret < 0)
		return;
	if (call->what == CALL_CHANGES_ROOT || (call->what == CALL_SETNS && entry->flags & CLONE_NEWNS))
		*role |= ROLE_ROOT_CHANGED;
}

static __always_inline void record_call(const struct call *call, struct pending *entry, s64 ret, u64 now_ns, u64 id,
					 u32 role)
{
	struct record *record = reserve(call->kind, entry->time_ns);

	if (!record)
		return;
	record->duration_ns = now_ns - entry->time_ns;
	record->goroutine = entry->goroutine;
	record->ret = ret;
	record->flags = entry->flags;
	if (call->fd)
		record->fd = argument(entry, call->fd);
	if (call->what == CALL_EXEC) {
		struct exec_text *text = exec_texts.lookup(&id);

		if (text)
			copy_exec(record, text);
		if (role & ROLE_ROOT_CHANGED)
			record->marks |= MARK_ENTRYPOINT;
	} else {
		if (call->path)
			record->path_bytes = read_string(record->path, PATH_BYTES, argument(entry, call->path), record);
		if (call->path2)
			record->path2_bytes = read_string(record->path2, PATH_BYTES, argument(entry, call->path2), record);
		if (call->detail)
			record->detail_bytes = read_string(record->detail, PATH_BYTES, argument(entry, call->detail), record);
		if (call->what == CALL_SIZED_STRING && record->detail_bytes > argument(entry, call->detail + 1))
			record->detail_bytes = argument(entry, call->detail + 1);
	}
	submit(record);
}

static __always_inline int returned(u32 number, s64 ret, struct call *call, u32 *role)
{
	struct pending *entry;
	u64 id, now_ns;

	if (call->what == CALL_API_ACCEPT) {
		if (ret >= 0)
			api_accepted(ret);
		return 0;
	}
	id = bpf_get_current_pid_tgid();
	entry = pending.lookup(&id);
	if (!entry) {
		/* a new process returns 0 from a clone that its parent entered; unfollowed opens have no entry */
		if (call->what == CALL_RECORD || call->what == CALL_CHANGES_ROOT || call->what == CALL_SETNS)
			count(COUNTER_UNMATCHED_RETURNS);
		return 0;
	}
	if (entry->number != number) {
		/* x86-64 returns from every exec that succeeds as if from execve (set_personality_64bit) */
		number = entry->number;
		call = calls.lookup(&number);
		if (!call || call->what != CALL_EXEC) {
			pending.delete(&id);
			count(COUNTER_UNMATCHED_RETURNS);
			return 0;
		}
	}
	now_ns = bpf_ktime_get_boot_ns();
	if (call->what == CALL_API_READ) {
		api_read(entry->arguments[0], (const char *)entry->arguments[1], ret, now_ns, entry->goroutine);
	} else if (call->what == CALL_API_WRITE) {
		api_answered(entry->arguments[0], entry->flags, entry->time_ns, now_ns - entry->time_ns, entry->goroutine);
	} else {
		learn(call, entry, ret, role);
		record_call(call, entry, ret, now_ns, id, *role);
	}
	pending.delete(&id);
	if (call->what == CALL_EXEC) {
		exec_texts.delete(&id);
		*role &= ~ROLE_EXECUTES;
		if (*role & ROLE_ENTRYPOINT)
			forget_entrypoint(id);
	}
	return 0;
}

/*
 * The perf flavour of the tracepoints runs with preemption off. Since Linux 6.13 the raw flavour does not: there the
 * kernel skips a program that another thread left half-way on the same CPU, and events are lost.
 */
int sys_enter(struct tracepoint__raw_syscalls__sys_enter *ctx)
{
	u32 *role, number = ctx->id;
	struct call *call = looked_at(number, &role);
	struct registers regs;

	if (!call)
		return 0;
	bpf_probe_read_kernel(&regs, sizeof(regs), (const void *)bpf_task_pt_regs(bpf_get_current_task_btf()));
	return entered(number, call, role, &regs);
}

int sys_exit(struct tracepoint__raw_syscalls__sys_exit *ctx)
{
	u32 *role, number = ctx->id;
	struct call *call = looked_at(number, &role);

	return call ? returned(number, ctx->ret, call, role) : 0;
}

int sched_process_fork(struct tracepoint__sched__sched_process_fork *ctx)
{
	u64 id = bpf_get_current_pid_tgid();
	struct pending *entry;
	struct record *record;
	u32 *role = role_of_current();

	if (!role || *role & ROLE_ENTRYPOINT)
		return 0;
	follow(ctx->child_pid);
	entry = pending.lookup(&id);
	if (entry && entry->flags & CLONE_THREAD)
		return 0;
	record = reserve(KIND_SCHED_PROCESS_FORK, bpf_ktime_get_boot_ns());
	if (!record)
		return 0;
	record->ret = ctx->child_pid;
	if (entry) {
		record->flags = entry->flags;
		record->goroutine = entry->goroutine;
	}
	submit(record);
	return 0;
}

int sched_process_exec(struct tracepoint__sched__sched_process_exec *ctx)
{
	u64 id = bpf_get_current_pid_tgid();
	u64 entry_id = (id & ~0xffffffffULL) | (u32)ctx->old_pid;
	struct exec_text *text;
	struct pending *entry;
	struct record *record;
	u32 *role = role_of_current();

	if (!role)
		return 0;
	if (entry_id != id) { /* a thread that is not the first becomes it: its entry moves along */
		u32 old_tid = entry_id;

		lineage.delete(&old_tid);
		entry = pending.lookup(&entry_id);
		if (entry) {
			struct pending copy = *entry;

			pending.update(&id, &copy);
			pending.delete(&entry_id);
		}
		text = exec_texts.lookup(&entry_id);
		if (text) {
			exec_texts.update(&id, text);
			exec_texts.delete(&entry_id);
		}
	}
	record = reserve(KIND_SCHED_PROCESS_EXEC, bpf_ktime_get_boot_ns());
	if (record) {
		record->ret = ctx->old_pid;
		text = exec_texts.lookup(&id);
		if (text)
			copy_exec(record, text);
		if (!record->path_bytes) {
			s64 length = bpf_probe_read_kernel_str(record->path, PATH_BYTES,
							       (void *)ctx + (ctx->data_loc_filename & 0xffff));
			record->path_bytes = length > 0 ? length - 1 : 0;
		}
		if (*role & ROLE_ROOT_CHANGED)
			record->marks |= MARK_ENTRYPOINT;
		submit(record);
	}
	*role &= ~ROLE_FIRST_ENDED;
	if (*role & ROLE_ROOT_CHANGED)
		*role |= ROLE_ENTRYPOINT;
	return 0;
}

int sched_process_exit(void *ctx)
{
	u64 id = bpf_get_current_pid_tgid();
	struct record *record;
	u32 pid = id >> 32, tid = id;
	u32 *role = role_of_current();
	bool in_exec = false, ends = tid == pid;

	if (role) {
		pending.delete(&id);
		in_exec = !exec_texts.delete(&id);
		if (in_exec) { /* killed on the way: if it had already ended the first thread, it is the last */
			*role &= ~ROLE_EXECUTES;
			ends = ends || *role & ROLE_FIRST_ENDED;
		} else if (ends && *role & ROLE_EXECUTES) { /* another thread executes and takes this one's place */
			*role |= ROLE_FIRST_ENDED;
			return 0;
		}
		if (ends) {
			record = reserve(KIND_SCHED_PROCESS_EXIT, bpf_ktime_get_boot_ns());
			if (record)
				submit(record);
			lineage.delete(&pid);
		}
	}
	if (tid != pid)
		lineage.delete(&tid);
	return 0;
}
