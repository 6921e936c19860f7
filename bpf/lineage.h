/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/*
 * Which processes are looked at: the engine's (seeded by user space) and what they start, until a
 * container's own first program begins.
 */
#ifndef OBSERVE_LINEAGE_H
#define OBSERVE_LINEAGE_H

#define ROLE_DOCKERD 1
#define ROLE_CONTAINERD 2
#define ROLE_CHILD 4
#define ROLE_ROOT_CHANGED 8 /* pivot_root, chroot or setns(NEWNS): its next execve is the entrypoint */
#define ROLE_ENTRYPOINT 16  /* that execve has happened: forgotten when it returns */
#define ROLE_EXECUTES 32    /* one of its threads is in an execve */
#define ROLE_FIRST_ENDED 64 /* and has ended the first thread, whose place it takes */

#define LINEAGE_PROCESSES 16384

/* Key: thread group; threads stand in it too until they exit, since a fork event does not tell them apart. */
BPF_HASH(lineage, u32, u32, LINEAGE_PROCESSES);

static __always_inline u32 *role_of_current(void)
{
	u32 pid = bpf_get_current_pid_tgid() >> 32;

	return lineage.lookup(&pid);
}

static __always_inline void follow(u32 child)
{
	u32 role = ROLE_CHILD;

	if (lineage.update(&child, &role))
		count(COUNTER_LINEAGE);
}

#endif
