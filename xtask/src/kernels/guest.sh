#!/bin/busybox sh
# Process 1 of the guest. What it finds goes to the second serial port, the kernel's own words to the first.
PATH=/bin:/sbin
export PATH
for applet in mount insmod ulimit uname cat poweroff mkdir; do
    /bin/busybox ln -s busybox "/bin/$applet" 2>/dev/null
done
mkdir -p /proc /sys /dev /tmp /run /var
mount -t proc none /proc
mount -t sysfs none /sys
mount -t devtmpfs none /dev
mount -t cgroup2 none /sys/fs/cgroup
mount -t bpf none /sys/fs/bpf
mount -t tracefs none /sys/kernel/tracing
exec </dev/null >/dev/ttyS1 2>&1
# As written, without a carriage return before each new line.
busybox stty -F /dev/ttyS1 -opost
ip link set lo up
ulimit -n 8192
for module in /modules/*.ko; do
    insmod "$module"
done

echo "@kernel $(uname -r)"
echo "@check"
smtp-sentinel check --json
echo "@tests"
probes --show-output --test-threads=2 "$@"
echo "@uptime $(cat /proc/uptime)"
echo "@end"
poweroff -f
