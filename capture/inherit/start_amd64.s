#include "textflag.h"

// start is what the kernel jumps to. It notes down ignored and blocked signals and
// closed descriptors, then goes on to the entry point of the runtime with the stack
// and the registers that matter as they were. There is no stack frame, no g, and no
// way to tell of an error: what fails counts as not ignored, not blocked, not closed.
//
// func start()
TEXT ·start(SB), NOSPLIT|NOFRAME, $0-0
	MOVL $1, R12
signal:
	// rt_sigaction(signal, NULL, &action, 8)
	MOVL R12, DI
	XORL SI, SI
	LEAQ ·action(SB), DX
	MOVL $8, R10
	MOVL $13, AX
	SYSCALL
	CMPQ ·action(SB), $1 // SIG_IGN
	JNE  next
	LEAL -1(R12), CX
	MOVL $1, AX
	SHLQ CX, AX
	ORQ  AX, ·ignored(SB)
next:
	MOVQ $0, ·action(SB)
	INCL R12
	CMPL R12, $64
	JLE  signal

	// rt_sigprocmask(SIG_BLOCK, NULL, &blocked, 8)
	XORL DI, DI
	XORL SI, SI
	LEAQ ·blocked(SB), DX
	MOVL $8, R10
	MOVL $14, AX
	SYSCALL

	XORL R12, R12
descriptor:
	// fcntl(descriptor, F_GETFD)
	MOVL R12, DI
	MOVL $1, SI
	XORL DX, DX
	MOVL $72, AX
	SYSCALL
	CMPQ AX, $-9 // EBADF
	JNE  open
	MOVL R12, CX
	MOVL $1, AX
	SHLQ CX, AX
	ORQ  AX, ·closed(SB)
open:
	INCL R12
	CMPL R12, $3
	JLT  descriptor

	MOVQ $1, ·recorded(SB)
	XORL DX, DX
	JMP  _rt0_amd64_linux(SB)
