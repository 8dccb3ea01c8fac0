// What every runner counts and says: a line for each check, and at the end `N passed, N failed[, N skipped]`, which .ci/run adds up.

export function checks() {
  const count = { passed: 0, failed: 0, skipped: 0 }
  const passed = (name, detail) => {
    count.passed++
    console.log(`ok      ${name}${detail ? ` (${detail})` : ''}`)
    return true
  }
  const failed = (name, { stdout, stderr, message }) => {
    count.failed++
    console.log(`FAILED  ${name}\n${stdout ?? ''}${stderr ?? ''}${message}`)
    return false
  }
  return {
    count,
    /** Returns, or resolves with, whether `action` neither threw nor rejected; what it returns is told beside the name. */
    check(name, action) {
      try {
        const detail = action()
        if (typeof detail?.then !== 'function') return passed(name, detail)
        return detail.then(
          (found) => passed(name, found),
          (error) => failed(name, error),
        )
      } catch (error) {
        return failed(name, error)
      }
    },
    skip(name, why) {
      count.skipped++
      console.log(`skipped ${name}: ${why}`)
    },
    /** The last line, and the exit code. */
    end() {
      const skipped = count.skipped > 0 ? `, ${count.skipped} skipped` : ''
      console.log(`${count.passed} passed, ${count.failed} failed${skipped}`)
      process.exitCode = count.failed === 0 && count.passed > 0 ? 0 : 1
    },
  }
}
