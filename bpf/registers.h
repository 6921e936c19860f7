/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/*
 * Where struct pt_regs keeps a system call's arguments, number and Go's g, by architecture.
 * x86-64: arch/x86/include/asm/ptrace.h; g is R14 from Go 1.17 on (Go's ABIInternal).
 * arm64 (untested): arch/arm64/include/asm/ptrace.h; g is R28.
 */
#ifndef OBSERVE_REGISTERS_H
#define OBSERVE_REGISTERS_H

#if defined(__x86_64__) || defined(__TARGET_ARCH_x86)
struct registers {
	u64 r15, r14, r13, r12, bp, bx, r11, r10, r9, r8, ax, cx, dx, si, di, orig_ax, ip, cs, flags, sp;
};
#define STACK_POINTER(regs) ((regs)->sp)
/* Go's ABIInternal: the first nine words of arguments; a stack ABI (Go < 1.17) function has g in RCX after its check. */
#define GO_WORDS(regs) \
	{ (regs)->ax, (regs)->bx, (regs)->cx, (regs)->di, (regs)->si, (regs)->r8, (regs)->r9, (regs)->r10 }
#define STACK_ABI_GOROUTINE(regs) ((regs)->cx)
#define SYSCALL_NUMBER(regs) ((s64)(regs)->orig_ax)
#define ARGUMENTS(regs) { (regs)->di, (regs)->si, (regs)->dx, (regs)->r10, (regs)->r8 }
#define GOROUTINE(regs) ((regs)->r14)
#define SYSCALL_NUMBER_OFFSET offsetof(struct registers, orig_ax)
/* The instruction keeps the return address in RCX and the flags in R11. */
#define IN_SYSTEM_CALL(regs) ((regs)->cx == (regs)->ip && (regs)->r11 == (regs)->flags)
/* futex, nanosleep, clock_nanosleep, epoll_wait, epoll_pwait: the call says what is waited for, and there are many. */
#define CALL_SAYS_ALL(number) \
	((number) == 202 || (number) == 35 || (number) == 230 || (number) == 232 || (number) == 281)
#elif defined(__aarch64__) || defined(__TARGET_ARCH_arm64)
struct registers {
	u64 x[31], sp, pc, pstate, orig_x0;
	s32 syscall_number;
};
#define STACK_POINTER(regs) ((regs)->sp)
#define GO_WORDS(regs) \
	{ (regs)->x[0], (regs)->x[1], (regs)->x[2], (regs)->x[3], (regs)->x[4], (regs)->x[5], (regs)->x[6], (regs)->x[7] }
#define STACK_ABI_GOROUTINE(regs) ((regs)->x[28])
#define SYSCALL_NUMBER(regs) ((s64)(regs)->syscall_number)
#define ARGUMENTS(regs) { (regs)->orig_x0, (regs)->x[1], (regs)->x[2], (regs)->x[3], (regs)->x[4] }
#define GOROUTINE(regs) ((regs)->x[28])
#define SYSCALL_NUMBER_OFFSET offsetof(struct registers, syscall_number)
#define IN_SYSTEM_CALL(regs) ((regs)->syscall_number >= 0)
#define CALL_SAYS_ALL(number) ((number) == 98 || (number) == 101 || (number) == 115 || (number) == 22)
#else
#error "observe knows the registers of x86-64 and arm64 only"
#endif

#endif
