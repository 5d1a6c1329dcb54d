package cluster

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"strings"
)

const (
	// apiAddress is the address of the Service "kubernetes", the first of the
	// range for Services.
	apiAddress = "10.96.0.1"
	apiPort    = 443

	bridgeName    = "nodes"
	bridgeAddress = "10.77.0.1"
)

func nodeAddress(index int) string { return fmt.Sprintf("10.77.0.%d", 10+index) }

func podRange(index int) string { return fmt.Sprintf("10.244.%d.0/24", index) }

// setUpNetwork makes the network around the nodes.
func setUpNetwork() error {
	return ip(
		"link set lo up",
		"addr add "+apiAddress+"/32 dev lo",
		"link add "+bridgeName+" type bridge",
		"addr add "+bridgeAddress+"/24 dev "+bridgeName,
		"link set "+bridgeName+" up",
	)
}

// connect plugs the network namespace of a process into the bridge, as node of
// that index, and leads the addresses of its pods there.
func connect(index, pid int) error {
	port := "port" + strconv.Itoa(index)
	return ip(
		"link add "+port+" type veth peer name eth0 netns "+strconv.Itoa(pid),
		"link set "+port+" master "+bridgeName+" up",
		"route replace "+podRange(index)+" via "+nodeAddress(index),
	)
}

// setUpNodeNetwork makes the network in a node, after connect.
func setUpNodeNetwork(index, nodes int) error {
	commands := []string{
		"link set lo up",
		"addr add " + nodeAddress(index) + "/24 dev eth0",
		"link set eth0 up",
		"route add default via " + bridgeAddress,
	}
	for peer := 1; peer <= nodes; peer++ {
		if peer != index {
			commands = append(commands, "route add "+podRange(peer)+" via "+nodeAddress(peer))
		}
	}
	if err := ip(commands...); err != nil {
		return err
	}
	return os.WriteFile("/proc/sys/net/ipv4/ip_forward", []byte("1"), 0o600)
}

// ip runs ip(8) with each of the lists of arguments.
func ip(commands ...string) error {
	for _, args := range commands {
		output, err := exec.Command("ip", strings.Fields(args)...).CombinedOutput() //nolint:gosec,noctx // it takes milliseconds
		if err != nil {
			return fmt.Errorf("ip %s: %w", args, errors.Join(err, errors.New(strings.TrimSpace(string(output)))))
		}
	}
	return nil
}
