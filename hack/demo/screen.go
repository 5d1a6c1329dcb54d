package main

import (
	"fmt"
	"io"
	"os"
	"strings"
)

// screen is where the demo speaks. It uses colour only for a person: on a
// terminal, unless NO_COLOR is set.
type screen struct {
	out    io.Writer
	colour bool
}

// The styles of the screen, as ANSI codes.
const (
	styleBold  = "1"
	styleFaint = "2"
	styleRed   = "31"
	styleGreen = "32"
	styleCyan  = "36"
)

func newScreen(out *os.File) *screen {
	info, err := out.Stat()
	terminal := err == nil && info.Mode()&os.ModeCharDevice != 0
	return &screen{out: out, colour: wantsColour(terminal, os.Getenv)}
}

// wantsColour follows no-color.org: any value but "" switches colour off.
func wantsColour(terminal bool, getenv func(string) string) bool {
	return terminal && getenv("NO_COLOR") == "" && getenv("TERM") != "dumb"
}

// Step begins a numbered step.
func (s *screen) Step(number int, title string) {
	fmt.Fprintf(s.out, "\n%s\n", s.paint(styleBold, fmt.Sprintf("%d. %s", number, title)))
}

// Say explains.
func (s *screen) Say(format string, args ...any) {
	fmt.Fprintln(s.out, indent("   ", fmt.Sprintf(format, args...)))
}

// Command shows a command that is run.
func (s *screen) Command(line string) {
	fmt.Fprintln(s.out, s.paint(styleCyan, "   $ "+line))
}

// Output shows what a command printed.
func (s *screen) Output(text string) {
	if text = strings.TrimRight(text, "\n"); text != "" {
		fmt.Fprintln(s.out, s.paint(styleFaint, indent("     ", text)))
	}
}

// Kept tells that something promised was seen to happen.
func (s *screen) Kept(format string, args ...any) {
	fmt.Fprintln(s.out, s.paint(styleGreen, "   ok ")+fmt.Sprintf(format, args...))
}

// Finale ends the steps.
func (s *screen) Finale(text string) {
	fmt.Fprintf(s.out, "\n%s\n", s.paint(styleBold+";"+styleGreen, text))
}

// Failure tells why the demo failed.
func (s *screen) Failure(err error) {
	fmt.Fprintf(s.out, "\n%s\n", s.paint(styleBold+";"+styleRed, "demo: "+err.Error()))
}

func (s *screen) paint(style, text string) string {
	if !s.colour {
		return text
	}
	return "\x1b[" + style + "m" + text + "\x1b[0m"
}

// indent puts prefix before every line of text that is not empty.
func indent(prefix, text string) string {
	lines := strings.Split(text, "\n")
	for i, line := range lines {
		if line != "" {
			lines[i] = prefix + line
		}
	}
	return strings.Join(lines, "\n")
}
