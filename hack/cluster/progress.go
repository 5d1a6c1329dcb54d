package main

import (
	"fmt"
	"os"
	"sync"
	"time"
)

// progress tells what is going on and for how long: on a terminal in a
// line that updates itself, elsewhere in a line every 15 seconds.
type progress struct {
	out      *os.File
	terminal bool
	interval time.Duration

	mu     sync.Mutex
	began  time.Time
	status string
}

func newProgress(out *os.File) *progress {
	p := &progress{out: out, interval: 15 * time.Second}
	if info, err := out.Stat(); err == nil && info.Mode()&os.ModeCharDevice != 0 {
		p.terminal, p.interval = true, 200*time.Millisecond
	}
	return p
}

// start begins to report and returns what ends it.
func (p *progress) start() (stop func()) {
	p.began = time.Now()
	done := make(chan struct{})
	var reporter sync.WaitGroup
	reporter.Go(func() {
		ticker := time.NewTicker(p.interval)
		defer ticker.Stop()
		for {
			select {
			case <-done:
				return
			case <-ticker.C:
				p.print()
			}
		}
	})
	return func() {
		close(done)
		reporter.Wait()
		if p.terminal {
			fmt.Fprint(p.out, clearLine)
		}
	}
}

// set says what is going on from now on.
func (p *progress) set(format string, args ...any) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.status = fmt.Sprintf(format, args...)
}

// finish prints a last line that stays.
func (p *progress) finish(format string, args ...any) {
	p.set(format, args...)
	p.print()
	if p.terminal {
		fmt.Fprintln(p.out)
	}
}

const clearLine = "\r\x1b[K"

func (p *progress) print() {
	p.mu.Lock()
	defer p.mu.Unlock()
	line := fmt.Sprintf("[%s] %s", time.Since(p.began).Round(time.Second), p.status)
	if p.terminal {
		fmt.Fprint(p.out, clearLine+line)
		return
	}
	fmt.Fprintln(p.out, line)
}
