// Package docs holds tests of the documentation: that links lead somewhere,
// that make targets and flags exist and are described, that diagrams can be
// drawn, and that commands work. "make docs-test" runs them.
package docs
