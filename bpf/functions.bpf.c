/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/*
 * When do the documented functions of the engine's Go programs begin and end? One program for every site: the
 * cookie says which function it is and whether the site is an entry or a return (observe/probes/functions.py).
 *
 * A frame is known by its goroutine and by how deep it lies on that goroutine's stack: both survive a change of
 * thread and a copy of the stack. No return probe is used: Go moves stacks, and the target would crash.
 */
#include <uapi/linux/ptrace.h>
#include <linux/types.h>
#include "registers.h"
#include "record.h"
#include "lineage.h"

#define COOKIE_FUNCTION(cookie) ((cookie) & 0xffff)
#define COOKIE_IS_RETURN(cookie) ((cookie) >> 16 & 1)
#define COOKIE_STACK_ABI(cookie) ((cookie) >> 17 & 1)
/* Position from 1 of the argument word that points to a string, its length in the next; 0 is none. */
#define COOKIE_STRING(cookie) ((cookie) >> 20 & 15)

/* Go's runtime.g begins with its stack's bounds: lo, hi (runtime/runtime2.go). */
#define G_STACK_HI 8
#define WORDS 8
#define WORD_BYTES 8

/* A string argument (pointer, length) at word `position` of an entry. */
static __always_inline void read_argument(struct record *record, struct registers *regs, u64 cookie)
{
	u64 words[WORDS] = GO_WORDS(regs);
	u32 position = COOKIE_STRING(cookie) - 1;
	u64 text = words[position & (WORDS - 1)];
	u64 bytes = words[(position + 1) & (WORDS - 1)];

	if (COOKIE_STACK_ABI(cookie)) { /* arguments stand behind the return address */
		u64 at = STACK_POINTER(regs) + WORD_BYTES * (1 + position);

		read_user(&text, sizeof(text), (const void *)at);
		read_user(&bytes, sizeof(bytes), (const void *)(at + WORD_BYTES));
	}
	if (bytes > PATH_BYTES - 1) {
		record->marks |= MARK_TRUNCATED;
		bytes = PATH_BYTES - 1;
	}
	asm volatile("" : "+r"(bytes)); /* or the compiler drops the mask that the verifier needs */
	bytes &= PATH_BYTES - 1;
	if (read_user(record->path, bytes, (const void *)text)) {
		record->marks |= MARK_PATH_UNREADABLE;
		return;
	}
	record->path_bytes = bytes;
}

int function_site(struct pt_regs *ctx)
{
	u64 now_ns = bpf_ktime_get_boot_ns();
	struct registers regs;
	struct record *record;
	u64 cookie, flags, goroutine, stack_hi = 0, depth = 0;

	if (!role_of_current())
		return 0;
	cookie = bpf_get_attach_cookie(ctx);
	bpf_probe_read_kernel(&regs, sizeof(regs), ctx);
	flags = COOKIE_FUNCTION(cookie);
	goroutine = GOROUTINE(&regs);
	if (COOKIE_STACK_ABI(cookie)) { /* at a return nothing points to g: the stack pointer goes along */
		goroutine = COOKIE_IS_RETURN(cookie) ? 0 : STACK_ABI_GOROUTINE(&regs);
		flags |= STACK_POINTER(&regs) << 16;
	}
	if (goroutine && !read_user(&stack_hi, sizeof(stack_hi), (const void *)(goroutine + G_STACK_HI)))
		depth = stack_hi - STACK_POINTER(&regs);
	record = reserve(COOKIE_IS_RETURN(cookie) ? KIND_FUNCTION_RETURN : KIND_FUNCTION_ENTRY, now_ns);
	if (!record)
		return 0;
	record->goroutine = goroutine;
	record->flags = flags;
	record->ret = depth;
	if (COOKIE_STRING(cookie) && !COOKIE_IS_RETURN(cookie))
		read_argument(record, &regs, cookie);
	submit(record);
	return 0;
}
