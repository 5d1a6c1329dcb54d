// Package agentca issues the certificates that the controller and the agents show
// each other (package agenttls), and renews them in time.
//
// They are kept in three Secrets, which the installation makes and this package
// only fills, so that no more rights are needed than to read and write these:
//
//   - that of the authority: its certificate and key, the next one's while there
//     is one, and all certificates that are trusted. Only the controller reads it,
//     and it is mounted nowhere;
//   - that of the agents, mounted by each of them;
//   - that of the controller, which reads it through the API. Its key is on no
//     node but the one that the controller runs on.
//
// What is to be done at a moment follows from what the Secrets say at that moment
// (decide.go), so that a restart changes nothing, and each write leaves a state in
// which controller and agents accept each other. That is why a new authority
// comes in three steps, each no sooner than everybody has heard of the one
// before: it is trusted, it signs, the old one is trusted no more.
package agentca
