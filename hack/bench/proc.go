package main

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// ticksPerSecond is the unit of CPU times in /proc, the same on every Linux
// that Go runs on (USER_HZ).
const ticksPerSecond = 100

// procStat is what this command reads of /proc/<pid>/stat.
type procStat struct {
	command    string // at most 15 bytes
	parent     int
	cpuSeconds float64 // user and system
}

// readStat reads the state of a process.
func readStat(pid int) (procStat, error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return procStat{}, err
	}
	return parseStat(text)
}

// parseStat reads the format of proc_pid_stat(5). The command is in
// parentheses and may contain anything, parentheses too.
func parseStat(text []byte) (procStat, error) {
	open, end := bytes.IndexByte(text, '('), bytes.LastIndexByte(text, ')')
	if open < 0 || end < open {
		return procStat{}, fmt.Errorf("no command in %q", text)
	}
	const parent, user, system = 1, 11, 12 // fields after the command
	fields := strings.Fields(string(text[end+1:]))
	if len(fields) <= system {
		return procStat{}, fmt.Errorf("only %d fields after the command in %q", len(fields), text)
	}
	var values [3]int
	for i, field := range []int{parent, user, system} {
		value, err := strconv.Atoi(fields[field])
		if err != nil {
			return procStat{}, fmt.Errorf("field %d after the command: %w", field, err)
		}
		values[i] = value
	}
	return procStat{
		command:    string(text[open+1 : end]),
		parent:     values[0],
		cpuSeconds: float64(values[1]+values[2]) / ticksPerSecond,
	}, nil
}

// childrenByCommand returns the ids of the children of this process by the name
// of their command.
func childrenByCommand() map[string]int {
	children := map[string]int{}
	paths, _ := filepath.Glob("/proc/[0-9]*") // the pattern is well-formed
	for _, path := range paths {
		pid, err := strconv.Atoi(filepath.Base(path))
		if err != nil {
			continue
		}
		stat, err := readStat(pid)
		if err == nil && stat.parent == os.Getpid() {
			children[stat.command] = pid
		}
	}
	return children
}

// peakRSS returns the most memory a process has had in use, in bytes.
func peakRSS(pid int) (int64, error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return 0, err
	}
	return parsePeakRSS(string(text))
}

func parsePeakRSS(status string) (int64, error) {
	for line := range strings.Lines(status) {
		if value, ok := strings.CutPrefix(line, "VmHWM:"); ok {
			kibibytes, err := strconv.ParseInt(strings.TrimSuffix(strings.TrimSpace(value), " kB"), 10, 64)
			if err != nil {
				return 0, fmt.Errorf("VmHWM: %w", err)
			}
			return kibibytes << 10, nil
		}
	}
	return 0, fmt.Errorf("no VmHWM in the process's status")
}

// others is the name in cpuTimes of everything that runs on the machine beside the
// processes asked for: what disturbs a measurement.
const others = "others"

// cpuTimes returns the CPU seconds used so far by each process, by its name here,
// and by the others.
func cpuTimes(processes map[string]int) (map[string]float64, error) {
	text, err := os.ReadFile("/proc/stat")
	if err != nil {
		return nil, err
	}
	rest, err := parseBusy(string(text))
	if err != nil {
		return nil, err
	}
	times := map[string]float64{}
	for name, pid := range processes {
		stat, err := readStat(pid)
		if err != nil {
			return nil, fmt.Errorf("CPU time of %s: %w", name, err)
		}
		times[name] = stat.cpuSeconds
		rest -= stat.cpuSeconds
	}
	times[others] = rest
	return times, nil
}

// parseBusy returns the seconds that all CPUs together were busy, from
// proc_stat(5).
func parseBusy(stat string) (float64, error) {
	first, _, _ := strings.Cut(stat, "\n")
	fields := strings.Fields(first)
	if len(fields) < 8 || fields[0] != "cpu" {
		return 0, fmt.Errorf("no CPU times in %q", first)
	}
	const idle, iowait = 4, 5
	busy := 0
	for i := 1; i < 8; i++ { // user to softirq
		ticks, err := strconv.Atoi(fields[i])
		if err != nil {
			return 0, fmt.Errorf("CPU time %d: %w", i, err)
		}
		if i != idle && i != iowait {
			busy += ticks
		}
	}
	return float64(busy) / ticksPerSecond, nil
}
